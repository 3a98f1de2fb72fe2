"""The real kubectl with a kind of the user's own: from `apply` of the definition to its deletion."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.api_server import running_server
from tests.client_programs import kubectls
from tests.wire.test_kubectl import Kubectl

DEFINITION = """\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: parcels.shop.example.org}
spec:
  group: shop.example.org
  scope: Namespaced
  names: {plural: parcels, singular: parcel, kind: Parcel, shortNames: [pcl], categories: [shop]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.copies, statusReplicasPath: .status.copies}
    additionalPrinterColumns:
    - {name: Copies, type: integer, jsonPath: .spec.copies}
    - {name: Target, type: string, jsonPath: .spec.target, priority: 1}
    schema:
      openAPIV3Schema:
        type: object
        description: A parcel of a machine.
        properties:
          spec:
            type: object
            required: [machine]
            x-kubernetes-validations:
            - {rule: "self.copies <= 5 || self.machine.startsWith('big-')", message: small ones get 5 copies}
            properties:
              machine: {type: string, description: Which machine.}
              target: {type: string}
              copies: {type: integer, default: 1}
          status:
            type: object
            properties: {copies: {type: integer}}
"""
OBJECT = """\
apiVersion: shop.example.org/v1
kind: Parcel
metadata: {name: nightly}
spec: {machine: web, target: far}
"""


@pytest.mark.parametrize("program", kubectls(), ids=lambda program: Path(program).name)
async def test_a_kind_of_ones_own(program: str, tmp_path: Path) -> None:
    (tmp_path / "crd.yaml").write_text(DEFINITION)
    (tmp_path / "parcel.yaml").write_text(OBJECT)
    (tmp_path / "many.yaml").write_text(OBJECT.replace("web", "web, copies: 6"))
    (tmp_path / "odd.yaml").write_text(OBJECT.replace("web", "web, coppies: 6"))
    async with running_server() as server:
        kubectl = Kubectl(program, server, tmp_path)
        assert "created" in await kubectl("apply -f crd.yaml")
        await kubectl("wait crd/parcels.shop.example.org --for=condition=Established --timeout=10s")
        assert "parcels.shop.example.org" in await kubectl("get crd")
        assert "A parcel of a machine." in await kubectl("explain parcel")
        assert "Which machine." in await kubectl("explain parcel.spec --recursive=false")
        assert "unchanged" in await kubectl("apply -f crd.yaml")

        assert "created" in await kubectl("apply -f parcel.yaml")
        assert (await kubectl("get pcl")).split()[:4] == ["NAME", "COPIES", "nightly", "1"]
        assert "far" in await kubectl("get shop -o wide")
        code, _, refused = await kubectl.run("apply", "-f", "many.yaml")
        assert (code, "spec: Invalid value: small ones get 5 copies" in refused) == (1, True), refused
        code, _, refused = await kubectl.run("apply", "-f", "odd.yaml")
        assert (code, 'unknown field "spec.coppies"' in refused) == (1, True), refused

        assert "scaled" in await kubectl("scale parcel nightly --replicas=4")
        assert await kubectl("get pcl nightly -o jsonpath={.spec.copies}") == "4"
        assert "serverside-applied" in await kubectl("apply --server-side --force-conflicts -f parcel.yaml")
        assert "Copies:" in await kubectl("describe parcel nightly")
        assert "deleted" in await kubectl("delete -f crd.yaml")
        code, _, missing = await kubectl.run("get", "parcels.shop.example.org")
        assert (code, "the server doesn't have a resource type" in missing) == (1, True)
