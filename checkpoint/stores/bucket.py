"""A bucket of an object storage through obstore: the only file that knows it."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import tempfile
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from checkpoint.errors import StoreError, is_of_handler

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TIMEOUT = 15.0
"""Seconds for one request with its answer, where the deadline leaves as many."""

MAX_OBJECT = 64 * 1024 * 1024
"""Bytes of the largest object that is written or read."""

Mode: TypeAlias = "str | dict[str, str]"
"""What to put on condition of: `"create"`, that there is no object, or the ETag and version of the one to replace."""

_ABSENT = {"NoSuchKey", "BlobNotFound"}  # any other 404 is an error: that of a missing bucket, or of some proxy
_EXPIRED = {"ExpiredToken", "InvalidToken"}
_REFUSED = {408, 409, 412, 425, 429}
_GATEWAY = {502, 504}


class Failed(Exception):
    """A failed request. Its text holds no credentials; the store turns it into an error of its own."""

    def __init__(
        self, said: str, status: int | None = None, code: str = "", *, again: bool, reached: bool = False
    ) -> None:
        super().__init__(said)
        self.code = code
        """The service's own, such as `NoSuchBucket`; empty: it told none."""
        self.again = again
        """Whether it may be tried again."""
        self.reached = reached
        """Whether the service may have carried it out: now, or when a gateway sent it a first time."""
        self.unanswered: bool = reached and (status is None or status in _GATEWAY)
        """Whether the service may still carry it out."""
        self.unauthorized: bool = status in {401, 403} or code in _EXPIRED
        self.refused: bool = status in {409, 412} or code in _ABSENT
        """Whether a put was refused because its condition did not hold."""
        self.longest: float = math.inf
        """Seconds of the longest pause before it is tried again."""
        self.too_large: bool = status == 413 or code == "EntityTooLarge"


def _failed(error: Exception) -> Failed:
    """Judge what obstore said: "… non-2xx status code: 404 Not Found: the body", or why there was no answer."""
    head, _, debug = str(error).partition("\n\nDebug source:")
    if asked := re.search(r"External \w+ credential provider: (\w+)", head):
        then = "sign in with `aws sso login`" if "SSO" in asked[1] else "it is called again with the next request"
        said = f"the credential provider failed with {asked[1]}; {then}"
        return Failed(said, 401, again=False)
    found = re.search(r"non-2xx status code: (\d{3})[^:]*:? ?", head)
    if found is None:
        reasons = re.findall(r'(?:message|error): "([^"]+)"|(TimedOut|BadScheme)|InvalidCertificate\(\s*(\w+)', debug)
        said = ": ".join([_public(head), *("".join(reason) for reason in reasons[-1:])])
        again = "HTTP error" in head and "kind: Builder" not in debug and "InvalidCertificate" not in debug
        return Failed(said, again=again, reached="kind: Connect" not in debug and "kind: Builder" not in debug)
    status, body = int(found[1]), head[found.end() :]
    code = _tag("Code", body)
    text = ": ".join(filter(None, [code, _tag("Message", body)])) or repr(body[:80])
    # The host that answered: for credentials not the bucket. obstore hides addresses that are signed.
    asked = re.search(r"Error performing \w+ (https?://\S+)", head)
    said = f"{asked[1] if asked else 'the service'} answered {status} {text}"
    passing = status in _REFUSED or (status >= 500 and status != 501)
    again = passing or code in _ABSENT  # which answers If-Match where the object is gone
    return Failed(_public(said), status, code, again=again, reached=again)


def _tag(name: str, body: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", body)
    return found[1] if found else ""


def _public(said: str) -> str:
    """Return what was said without paths and queries, which may carry signatures, and without credentials."""
    said = re.sub(r"(https?://)(?:[^/\s@]*@)?([^/\s?]+)\S*", r"\1\2", said)
    for name, value in os.environ.items():
        if re.match(r"(AWS|GOOGLE|AZURE)_.*(KEY|TOKEN|SECRET)", name) and len(value) > 3:
            said = said.replace(value, "***")
    return said[:400]


_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_OPTIONS = (
    *("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "proxy_excludes"),
    "user_agent",
)


class Bucket:
    """A bucket through obstore, each request sent once.

    `timeout` is the seconds of one request with its answer. `provider` is obstore's: a callable that returns
    credentials, asked again when they expire; None: the environment, for S3 the profile of boto3 too.
    """

    checked = False
    """Whether it was seen to keep the conditions of a put."""

    def __init__(self, scheme: str, bucket: str, timeout: float, provider: Callable[[], Any] | None = None) -> None:
        self._library = library()
        # Given options replace those of the environment altogether.
        environment = {name: os.environ.get(_VARIABLES[scheme] + name.upper()) for name in _OPTIONS}
        options = {name: value for name, value in environment.items() if value is not None}
        options["timeout"] = f"{int(timeout * 1000)} ms"
        options["connect_timeout"] = f"{int(min(5.0, timeout) * 1000)} ms"
        # Its own policy would repeat a put without reading first, and wait for minutes.
        once = {"max_retries": 0}
        open_url = self._library.store.from_url
        found = provider or (_profile() if scheme == "s3" else None)
        self._store = self._call(
            lambda: open_url(
                f"{scheme}://{bucket}", client_options=options, retry_config=once, credential_provider=found
            )
        )

    def get(self, name: str) -> tuple[bytes, dict[str, str]] | None:
        """Return an object's bytes and the mode to replace it, None where there is none.

        Raises:
            Failed: there was no whole answer, or another one.

        """
        try:
            result = self._call(lambda: self._library.get(self._store, name))
        except Failed as failed:
            if failed.code in _ABSENT:
                return None
            raise
        meta = result.meta
        if meta["size"] > MAX_OBJECT:
            raise Failed(f"it has {meta['size']:,} bytes; at most {MAX_OBJECT:,} are read", again=False)
        mode = {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}
        if not mode:
            raise Failed("the service sent no ETag, which is needed to detect other writers", again=False)
        return bytes(self._call(result.bytes)), mode

    def put(self, name: str, data: bytes, mode: Mode) -> None:
        """Replace an object, or create it, if it is as the mode says.

        Raises:
            Failed: it was refused, or there was no answer.

        """
        self._call(lambda: self._library.put(self._store, name, data, mode=mode))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the names and sizes of the objects below a prefix, without those below a further `/`.

        Raises:
            Failed: as above.

        """
        found = self._call(lambda: self._library.list_with_delimiter(self._store, prefix or None))
        return {meta["path"]: meta["size"] for meta in found["objects"]}

    def _call(self, request: Callable[[], Any]) -> Any:
        # Without arguments: obstore's repr of an Azure store, in a rendered traceback, may end the process.
        try:
            return request()
        except (self._library.exceptions.BaseError, OSError, ValueError) as error:
            if is_of_handler(error):
                raise
            failed = _failed(error)
        raise failed  # outside of the block: what obstore said may hold credentials, and would be its context


STALE = {"e_tag": '"00000000000000000000000000000000"', "version": "1"}
"""A condition that holds for no object."""


def keeps_conditions(bucket: Bucket, name: str, data: bytes, mode: Mode) -> bool:
    """Try a put whose condition cannot hold; return whether it was refused, as it must be.

    Raises:
        Failed: there was no answer, or another refusal.

    """
    try:
        bucket.put(name, data, mode)
    except Failed as failed:
        if failed.refused:
            return True
        raise
    return False


def _profile() -> Any:
    """Return boto3's provider for the credentials of a profile (assumed roles, SSO); None: there is no profile.

    obstore itself reads the environment and the metadata of an instance or container, and no files.

    Raises:
        Failed: a profile is named, and boto3 is missing or cannot read it.

    """
    named = os.environ.get("AWS_PROFILE")
    if not named and (os.environ.get("AWS_ACCESS_KEY_ID") or not any(map(_exists, _PROFILES.items()))):
        return None
    try:
        boto3, provider = import_module("boto3"), import_module("obstore.auth.boto3")
    except ImportError as error:
        if not named:
            return None
        raise Failed("AWS_PROFILE is set, and profiles need boto3: pip install boto3", again=False) from error
    try:
        session = boto3.Session()
        return provider.Boto3CredentialProvider(session) if session.get_credentials() is not None else None
    except import_module("botocore.exceptions").BotoCoreError as error:
        failed = Failed(f"the AWS profile cannot be used: {error}", 401, again=False)
    raise failed


_PROFILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}


def _exists(file: tuple[str, str]) -> bool:
    return Path(os.environ.get(file[0]) or file[1]).expanduser().is_file()


_libraries: dict[int, Any] = {}  # by process
_inherited: ModuleType | None = None  # the compiled part of obstore that this process was forked with
_lock = Lock()


def library() -> Any:
    """Return an obstore module that works in this process."""
    with _lock:
        found = _libraries.get(os.getpid())
        if found is None:
            found = _libraries[os.getpid()] = _import() if _inherited is None else _import_again(_inherited)
    return found


def _import() -> ModuleType:
    try:
        import obstore  # an extra
    except ImportError as error:
        raise StoreError("an object store needs obstore: pip install 'checkpoint-store[objects]'") from error
    return obstore


def _import_again(compiled: ModuleType) -> ModuleType:
    """Load obstore once more, from a copy of its compiled file, which brings a runtime of its own.

    The threads of the first one's runtime were left behind in the parent, and a request would wait for them for ever:
    tokio supports no fork once it runs (docs.rs/tokio, runtime). A file is never loaded twice, its copy is.
    """
    first = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "obstore"}
    for name in first:
        del sys.modules[name]
    try:
        with tempfile.TemporaryDirectory(prefix="checkpoint") as folder:
            file = Path(cast("str", compiled.__file__))
            loader = ExtensionFileLoader(compiled.__name__, str(shutil.copy(file, folder)))
            spec = cast("ModuleSpec", spec_from_loader(compiled.__name__, loader))
            module = sys.modules[compiled.__name__] = module_from_spec(spec)
            loader.exec_module(module)
            return _import()
    except (OSError, ImportError) as error:
        raise StoreError(
            f"obstore does not work in a forked process, and could not be loaded again ({error}): start processes with "
            "the start method 'spawn'"
        ) from error
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
            del sys.modules[name]
        sys.modules.update(first)


def _inherit() -> None:
    global _inherited, _lock  # noqa: PLW0603 - what belongs to the process
    _inherited = sys.modules.get("obstore._obstore", _inherited)
    _lock = Lock()  # it may be held by a thread that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)
