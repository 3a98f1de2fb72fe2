"""virt-install's line, read as it stands, and the manifests that it means. Pure: the world comes in as `Facts`.

Called by `cli.create`. `options` lists every option of virt-install (accepted, or refused with the reason);
`suboptions` reads `key=value,…`; the topics (`compute`, `disks`, `networks`, `boot`, `devices`, `cloudinit`,
`systems`) each add their part to a `Plan`; `manifest` puts them together. Whatever cannot be honoured raises `Refusal`
with one sentence that names it. Option names and their meaning follow virt-install(1) of virt-manager 5.
"""
