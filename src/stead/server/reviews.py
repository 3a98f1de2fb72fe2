"""Kinds that are answered and never stored: access reviews, token reviews, tokens, upload tokens.

Called by `app` on a create, after authorisation. Answers 201 with the review filled in. Follows R3 and H2, and CDI's
UploadTokenRequest.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from stead.kinds import register
from stead.kube import meta
from stead.kube.errors import ApiError, cause, invalid, not_found
from stead.server.answer import Answer, json_answer
from stead.server.authn import (
    MAX_TOKEN_SECONDS,
    MIN_TOKEN_SECONDS,
    Authenticator,
    TokenClaims,
    User,
)
from stead.server.authz import Attributes, Authorizer
from stead.server.catalogue import Served
from stead.server.verbs import Verbs

if TYPE_CHECKING:
    from stead.server.exchange import Exchange

Object = dict[str, Any]


class Reviews:
    """See the module's prose."""

    def __init__(self, verbs: Verbs, authenticator: Authenticator, authorizer: Authorizer) -> None:
        self._verbs = verbs
        self._authenticator = authenticator
        self._authorizer = authorizer

    async def create(self, exchange: Exchange, served: Served, obj: Object) -> Answer:
        """Answer one review."""
        kind = served.resource.kind
        body = {"kind": kind, "apiVersion": f"{exchange.request.group}/{exchange.request.version}"}
        spec: Object = obj.get("spec") or {}
        metadata: Object = obj.get("metadata") or {}
        if kind == "SelfSubjectReview":
            metadata = {"creationTimestamp": meta.now()}
            return json_answer({**body, "metadata": metadata, "status": {"userInfo": exchange.user.info()}}, 201)
        if kind == "TokenReview":
            return json_answer({**body, "metadata": {}, "spec": spec, "status": await self._token_status(spec)}, 201)
        if kind == "UploadTokenRequest":
            return self._upload_token(exchange, body, metadata, spec)
        if kind == "SelfSubjectRulesReview":
            rules = self._rules_status(exchange.user, spec.get("namespace") or "")
            return json_answer({**body, "metadata": metadata, "spec": spec, "status": rules}, 201)
        if kind == "SelfSubjectAccessReview":
            user = exchange.user
        else:
            if not spec.get("user") and not spec.get("groups"):
                text = 'Invalid value: "": at least one of user or group must be specified'
                raise _invalid([cause("spec.user", text)])
            groups = tuple(spec.get("groups") or ())
            user = User(spec.get("user", ""), spec.get("uid", ""), groups, spec.get("extra") or {})
        if kind == "LocalSubjectAccessReview":
            where = (spec.get("resourceAttributes") or {}).get("namespace", "")
            if where != exchange.request.namespace:
                text = f"Invalid value: {meta.go_quote(where)}: must match metadata.namespace"
                raise _invalid([cause("spec.resourceAttributes.namespace", text)])
            metadata = {**metadata, "namespace": exchange.request.namespace}
        asked = _asked(spec)
        # Like the original, refuse what looks like an object with a name of its own.
        allowed = ("namespace",) if kind == "LocalSubjectAccessReview" else ()
        if any(value and key not in allowed for key, value in metadata.items()):
            text = f"Invalid value: {msgspec.json.encode(metadata).decode()}: must be empty"
            raise _invalid([cause("metadata", text)])
        decision = self._authorizer.authorize(user, asked)
        status: Object = {"allowed": decision.allowed}
        if decision.reason:
            status["reason"] = decision.reason
        return json_answer({**body, "metadata": metadata, "spec": spec, "status": status}, 201)

    async def _token_status(self, spec: Object) -> Object:
        audiences = list(spec.get("audiences") or [self._authenticator.issuer.issuer])
        token = spec.get("token") or ""
        try:
            user = await self._authenticator.from_token(token, audiences)
        except ApiError:
            return {"authenticated": False, "user": {}, "error": "invalid bearer token"}
        return {"authenticated": True, "user": user.info(), "audiences": self._authenticator.granted(token, audiences)}

    def _rules_status(self, user: User, namespace: str) -> Object:
        rules = self._authorizer.rules_for(user, namespace)
        return {
            "resourceRules": [
                {key: rule[key] for key in ("verbs", "apiGroups", "resources", "resourceNames") if rule.get(key)}
                for rule in rules
                if rule.get("resources")
            ],
            "nonResourceRules": [
                {"verbs": rule.get("verbs", []), "nonResourceURLs": rule["nonResourceURLs"]}
                for rule in rules
                if rule.get("nonResourceURLs")
            ],
            "incomplete": False,
        }

    def _upload_token(self, exchange: Exchange, body: Object, metadata: Object, spec: Object) -> Answer:
        name, namespace = spec.get("pvcName") or "", exchange.request.namespace
        if not name:
            found = [cause("spec.pvcName", "Required value", "FieldValueRequired")]
            raise invalid("UploadTokenRequest", exchange.request.group, metadata.get("name", ""), found)
        if self._verbs.registry.peek(register.PERSISTENT_VOLUME_CLAIM, namespace, name) is None:
            raise not_found("persistentvolumeclaims", name)
        token = self._authenticator.issuer.issue_upload(namespace, name)
        metadata = {**metadata, "namespace": namespace, "creationTimestamp": metadata.get("creationTimestamp")}
        return json_answer({**body, "metadata": metadata, "spec": spec, "status": {"token": token}}, 201)

    async def token(self, exchange: Exchange, obj: Object) -> Answer:
        """`serviceaccounts/NAME/token`: a token of a ServiceAccount."""
        request = exchange.request
        account = self._verbs.get(register.SERVICE_ACCOUNT, request.namespace, request.name).obj
        spec: Object = obj.get("spec") or {}
        seconds = spec.get("expirationSeconds")
        seconds = 3600 if seconds is None else int(seconds)
        causes = []
        if seconds < MIN_TOKEN_SECONDS:
            text = f"Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            causes.append(cause("spec.expirationSeconds", text))
        elif seconds > 1 << 32:
            text = f"Invalid value: {seconds}: may not specify a duration larger than 2^32 seconds"
            causes.append(cause("spec.expirationSeconds", text))
        if causes:
            raise invalid("TokenRequest", "authentication.k8s.io", "", causes)
        bound = self._bound(request.namespace, spec.get("boundObjectRef"))
        audiences = tuple(spec.get("audiences") or [self._authenticator.issuer.issuer])
        wanted = TokenClaims(
            namespace=request.namespace, name=request.name, uid=account["metadata"]["uid"], audiences=audiences,
            seconds=min(seconds, MAX_TOKEN_SECONDS), bound=bound,
        )  # fmt: skip
        text, expires = self._authenticator.issuer.issue(wanted)
        moment = datetime.datetime.fromtimestamp(expires, datetime.UTC)
        shown: Object = {"audiences": list(audiences), "expirationSeconds": seconds}
        shown["boundObjectRef"] = spec.get("boundObjectRef")
        return json_answer({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": request.name, "namespace": request.namespace, "uid": account["metadata"]["uid"],
                "creationTimestamp": meta.now(),
            },
            "spec": shown, "status": {"token": text, "expirationTimestamp": meta.format_time(moment)},
        }, 201)  # fmt: skip

    def _bound(self, namespace: str, ref: Object | None) -> dict[str, str] | None:
        if not ref:
            return None
        resource, where = (register.SECRET, namespace) if ref.get("kind") == "Secret" else (register.NODE, "")
        if ref.get("kind") not in ("Secret", "Node"):
            raise ApiError("BadRequest", f"cannot bind token for serviceaccount to type {ref.get('kind')}")
        found = self._verbs.get(resource, where, ref.get("name") or "").obj
        uid = found["metadata"]["uid"]
        if ref.get("uid") and ref["uid"] != uid:
            text = (
                f"the UID in the bound object reference ({ref['uid']}) does not match the UID in record. The object "
                "might have been deleted and then recreated"
            )
            named = f'{resource.kind} "{ref.get("name") or ""}"'
            details = {"name": ref.get("name") or "", "kind": resource.kind}
            raise ApiError("Conflict", f"Operation cannot be fulfilled on {named}: {text}", details)
        return {"kind": resource.kind, "name": ref.get("name") or "", "uid": uid}


def _asked(spec: Object) -> Attributes:
    """The question of a review. Raises 422 unless exactly one kind of attributes is given."""
    resource, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if resource is not None and other is not None:
        shown = f'{{"Path":{meta.go_quote(other.get("path", ""))},"Verb":{meta.go_quote(other.get("verb", ""))}}}'
        text = f"Invalid value: {shown}: cannot be specified in combination with resourceAttributes"
        raise _invalid([cause("spec.nonResourceAttributes", text)])
    if resource is None and other is None:
        text = "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified"
        raise _invalid([cause("spec.resourceAttributes", text)])
    if other is not None:
        return Attributes(verb=other.get("verb", ""), path=other.get("path", ""))
    assert resource is not None
    plural, sub = resource.get("resource", ""), resource.get("subresource")
    return Attributes(
        verb=resource.get("verb", ""), group=resource.get("group", ""), version=resource.get("version", ""),
        resource=f"{plural}/{sub}" if sub else plural or "*", namespace=resource.get("namespace", ""),
        name=resource.get("name", ""),
    )  # fmt: skip


def _invalid(causes: list[dict[str, str]]) -> ApiError:
    """422 of a review, which names no kind."""
    return invalid("", "authorization.k8s.io", "", causes)
