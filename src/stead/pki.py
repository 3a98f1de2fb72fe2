"""Certificates and keys of an installation: our own CA, what it issues, and the key that signs ServiceAccount tokens.

Files are written whole by rename, keys with mode 0600. A certificate is renewed when a third of its life is left, so
that no listener ever serves an expired one. Called by `run` and the command line; everything is synchronous and quick.
Identity follows Kubernetes: common name = user, organisation = group.

A CA changes in three steps, each whole at every moment. `ca.crt` is what is trusted; the certificate in it that belongs
to `ca.key` issues. *Introduce*: a coming CA is trusted too, its key waits in `ca-next.key`. *Switch*: that key becomes
`ca.key` by one rename; what the old CA issued stays good and is issued anew at leisure. *Drop*: the old one is trusted
no more. `tend_authority` does all by itself in the last third of a CA's life: clients have years to learn the new one.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import ipaddress
import os
import ssl
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE = datetime.timedelta(days=3650)
#: Life of issued certificates; they rotate by themselves when a third of it is left.
LEAF_LIFE = datetime.timedelta(days=90)
#: Tolerated clock difference between hosts.
SKEW = datetime.timedelta(minutes=5)


class Pair(msgspec.Struct, frozen=True):
    """Paths of a certificate (PEM, leaf first) and its private key (PEM, PKCS#8)."""

    certificate: Path
    key: Path


class Identity(msgspec.Struct, frozen=True):
    """Whom a certificate names. `names` are DNS names and IP addresses; those with any get server usage too.

    `uri` names the object that the certificate dies with (`kinds.accounts`).
    """

    user: str
    groups: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    uri: str = ""


def write_private(path: Path, data: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace a file whole, never readable by others on the way; `owner` (uid, gid) is for root."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def ensure_key(path: Path) -> None:
    """A P-256 private key at `path`, made when absent (the key of ServiceAccount tokens, ES256)."""
    if not path.exists():
        write_private(path, _pem_key(ec.generate_private_key(ec.SECP256R1())))


def ensure_secret(path: Path) -> None:
    """32 random bytes in base64 at `path`, made when absent (the key that seals Secrets in the store)."""
    if not path.exists():
        write_private(path, base64.b64encode(os.urandom(32)) + b"\n")


def ensure_authority(directory: Path, name: str, life: datetime.timedelta = CA_LIFE) -> Pair:
    """The CA in `directory` (ca.crt, ca.key), made when absent."""
    pair = Pair(directory / "ca.crt", directory / "ca.key")
    if pair.certificate.exists() and pair.key.exists():
        return pair
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _authority_certificate(key, name, life)
    write_private(pair.key, _pem_key(key))
    write_private(pair.certificate, _pem(certificate), 0o644)
    return pair


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def _authority_certificate(key: ec.EllipticCurvePrivateKey, name: str, life: datetime.timedelta) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is not an elliptic curve key")
    return key


def trusted(authority: Pair) -> list[x509.Certificate]:
    """All CAs that are trusted."""
    return x509.load_pem_x509_certificates(authority.certificate.read_bytes())


def issuing(authority: Pair) -> x509.Certificate:
    """The CA that issues: the one of `ca.key`. Raises ValueError when it is not there."""
    public = _load_key(authority.key).public_key()
    for certificate in trusted(authority):
        if certificate.public_key() == public:
            return certificate
    raise ValueError(f"{authority.certificate} holds no certificate of {authority.key}")


def issuing_first(authority: Pair) -> bytes:
    """All trusted CAs as PEM, the one that issues before the others."""
    current = issuing(authority)
    return _pem(current, *(ca for ca in trusted(authority) if ca != current))


def next_key(authority: Pair) -> Path:
    """Where the key of a CA waits that is introduced and does not issue yet."""
    return authority.key.with_name("ca-next.key")


def for_users(authority: Pair) -> Pair:
    """The CA that outlives the others: users get certificates of a coming one as soon as it is trusted."""
    waiting = next_key(authority)
    return Pair(authority.certificate, waiting) if waiting.exists() else authority


def introduce(authority: Pair, name: str, life: datetime.timedelta = CA_LIFE) -> None:
    """Trust a coming CA beside the present one. Done again after a crash it finishes what was begun."""
    ensure_key(next_key(authority))
    key = _load_key(next_key(authority))
    known = trusted(authority)
    if any(certificate.public_key() == key.public_key() for certificate in known):
        return
    write_private(authority.certificate, _pem(*known, _authority_certificate(key, name, life)), 0o644)


def switch(authority: Pair) -> None:
    """Issue by the introduced CA from now on. Raises FileNotFoundError when there is none."""
    os.replace(next_key(authority), authority.key)


def drop(authority: Pair, *, expired_only: bool = False, now: datetime.datetime | None = None) -> bool:
    """Trust no CA any more but the one that issues (or no expired one, and never a coming one); True when one went."""
    known, current = trusted(authority), issuing(authority)
    moment = now or datetime.datetime.now(datetime.UTC)
    kept = [ca for ca in known if ca == current or (expired_only and ca.not_valid_after_utc > moment)]
    if len(kept) == len(known):
        return False
    write_private(authority.certificate, _pem(*kept), 0o644)
    return True


def tend_authority(authority: Pair, name: str, now: datetime.datetime | None = None) -> None:
    """The step that a CA's age asks for: introduce with a third of its life left, switch with a sixth, then drop."""
    moment = now or datetime.datetime.now(datetime.UTC)
    current = issuing(authority)
    life, left = current.not_valid_after_utc - current.not_valid_before_utc, current.not_valid_after_utc - moment
    if left < life / 3:
        introduce(authority, name)
    if left < life / 6 and next_key(authority).exists():
        switch(authority)
    drop(authority, expired_only=True, now=moment)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(identity: Identity) -> x509.SubjectAlternativeName:
    entries: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)] if identity.uri else []
    for name in dict.fromkeys(identity.names):
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            entries.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(entries)


def issue(
    authority: Pair, identity: Identity, public_key: ec.EllipticCurvePublicKey, life: datetime.timedelta = LEAF_LIFE
) -> bytes:
    """A certificate (PEM) for `public_key`, signed by the CA: client usage, and server usage when it has names."""
    ca, ca_key = issuing(authority), _load_key(authority.key)
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in identity.groups]
    attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, identity.user))
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity.names:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(min(now + life, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
    )
    if identity.names or identity.uri:
        builder = builder.add_extension(_alternative_names(identity), critical=False)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def signing_request(user: str) -> tuple[bytes, bytes]:
    """A new P-256 key and a request for its certificate: (request PEM, key PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM), _pem_key(key)


def requested_key(request: bytes, user: str) -> ec.EllipticCurvePublicKey:
    """The key of a request that names `user` and is signed by it; its extensions count for nothing.

    Raises ValueError with what is wrong.
    """
    try:
        found = x509.load_pem_x509_csr(request)
    except (ValueError, TypeError):
        raise ValueError("not a certificate request in PEM") from None
    key = found.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the key must be of the curve P-256")
    common = [str(attribute.value) for attribute in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if common != [user]:
        raise ValueError(f"the request names {', '.join(common) or 'nobody'}, not {user}")
    if not found.is_signature_valid:
        raise ValueError("the request is not signed by its own key")
    return key


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's public key (SubjectPublicKeyInfo) in hexadecimal: what joining hosts pin."""
    public = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(public).hexdigest()


def pinned(authorities: bytes, wanted: str) -> bytes:
    """The authority (PEM) among several whose `fingerprint` is `wanted`. Raises ValueError when there is none."""
    try:
        known = x509.load_pem_x509_certificates(authorities)
    except ValueError:
        raise ValueError("no certificate in PEM") from None
    for certificate in known:
        if hmac.compare_digest(fingerprint(certificate), wanted):
            return _pem(certificate)
    raise ValueError("no authority has the pinned key")


def fingerprints(authorities: bytes) -> list[str]:
    """`fingerprint` of each certificate of a PEM text. Raises ValueError when it holds none."""
    return [fingerprint(certificate) for certificate in x509.load_pem_x509_certificates(authorities)]


def is_due_by_age(certificate: Path, now: datetime.datetime | None = None) -> bool:
    """Whether less than a third of its life is left."""
    return _is_old(x509.load_pem_x509_certificates(certificate.read_bytes())[0], now)


def _is_old(found: x509.Certificate, now: datetime.datetime | None) -> bool:
    life = max(found.not_valid_after_utc - found.not_valid_before_utc - SKEW, datetime.timedelta(0))
    return (now or datetime.datetime.now(datetime.UTC)) > found.not_valid_after_utc - life / 3


def issue_pair(authority: Pair, identity: Identity, life: datetime.timedelta = LEAF_LIFE) -> tuple[bytes, bytes]:
    """A new key and its certificate: (certificate PEM, key PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    return issue(authority, identity, key.public_key(), life), _pem_key(key)


def is_due(
    certificate: Path, identity: Identity, authority: Pair | None = None, now: datetime.datetime | None = None
) -> bool:
    """Whether it is absent, names another identity or issuer, or has less than a third of its life left."""
    try:
        found = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except (FileNotFoundError, ValueError, IndexError):
        return True
    names: tuple[str, ...] = ()
    try:
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(entry.value) for entry in extension)
    except x509.ExtensionNotFound:
        pass
    common = [str(attribute.value) for attribute in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if common != [identity.user] or set(names) != set(identity.names):
        return True
    if authority is not None and not _is_issued_by(found, issuing(authority)):
        return True
    return _is_old(found, now)


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def ensure_certificate(authority: Pair, pair: Pair, identity: Identity, life: datetime.timedelta = LEAF_LIFE) -> bool:
    """Make or renew the certificate of `identity` at `pair`; True when it was written anew."""
    if pair.key.exists() and not is_due(pair.certificate, identity, authority):
        return False
    certificate, key = issue_pair(authority, identity, life)
    write_private(pair.key, key)
    write_private(pair.certificate, certificate, 0o644)
    return True


def server_context(pair: Pair, ca: Path, *, require_client: bool) -> ssl.SSLContext:
    """TLS 1.2+ for a listener that asks for (or requires) a client certificate of our CA. HTTP/1.1 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(ca: Path, pair: Pair | None = None) -> ssl.SSLContext:
    """TLS for a client that trusts our CA alone and shows `pair` when given."""
    context = ssl.create_default_context(cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context
