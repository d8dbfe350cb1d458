"""LocalECR: the rules of ECR served over real HTTP, on loopback."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, overload

from botocore.config import Config
from botocore.session import Session
from typing_extensions import Self

from ecr_parts._base.validation import check_int, check_seconds, short_repr
from ecr_parts._model.limits import Limits
from ecr_parts._wire.retry import CLIENT_CONFIG
from ecr_parts.testing._faults import Effect, Fault, Response
from ecr_parts.testing._http import Server
from ecr_parts.testing._parameters import EcrError
from ecr_parts.testing._registry import Registry
from ecr_parts.testing._service import Call, Service
from ecr_parts.testing._service_model import model_loader
from ecr_parts.testing._unknowns import Unknowns

if TYPE_CHECKING:
    from mypy_boto3_ecr import ECRClient
    from mypy_boto3_ecr_public import ECRPublicClient

_REGION = "us-east-1"


class LocalECR:
    """A strict ECR on loopback: real HTTP, storage in memory.

    >>> with LocalECR() as ecr:
    ...     client = ecr.client()

    ``repositories`` exist from the start. ``limits`` and ``part_size`` (bytes) default to ECR's
    own; small ones keep tests small. ``unknowns`` selects its behaviour where that of ECR is not
    known. ``slow`` is the delay of the fault ``"slow"``, and ``processing_time`` the time that each
    part takes once its request is complete, in seconds. ``port=0`` picks a free port.

    The operations of its API are BatchCheckLayerAvailability, BatchDeleteImage, BatchGetImage,
    CompleteLayerUpload, CreateRepository, DeleteLifecyclePolicy, DeleteRepository,
    DeleteRepositoryPolicy, DescribeImageTags, DescribeImages, DescribeRegistries,
    DescribeRepositories, GetAuthorizationToken, GetDownloadUrlForLayer, GetLifecyclePolicy,
    GetRepositoryCatalogData, GetRepositoryPolicy, InitiateLayerUpload, ListImageReferrers,
    ListImages, ListTagsForResource, PutImage, PutImageScanningConfiguration, PutImageTagMutability,
    PutLifecyclePolicy, PutRepositoryCatalogData, SetRepositoryPolicy, TagResource, UntagResource,
    UpdateImageStorageClass and UploadLayerPart, for ECR and ECR Public as far as the service, and
    the installed botocore, has them. Others are refused with ``UnknownOperationException``.
    Policies are kept and returned, not evaluated; nothing is scanned; archived images are restored
    at once.

    By the registry's API, images can be pulled. A pull needs no token, and any is accepted. Pushes
    by that API are refused.
    """

    __module__ = "ecr_parts.testing"

    def __init__(
        self,
        repositories: Iterable[str] = ("demo",),
        *,
        limits: Limits | None = None,
        part_size: int | None = None,
        unknowns: Unknowns | None = None,
        slow: float = 1.0,
        processing_time: float = 0.0,
        port: int = 0,
    ) -> None:
        registry = Registry(repositories, limits=limits, part_size=part_size, unknowns=unknowns)
        check_seconds("slow", slow)
        check_seconds("processing_time", processing_time)
        self._service = Service(
            registry, unknowns or Unknowns(), slow=slow, processing_time=processing_time
        )
        self.calls: list[Call] = self._service.calls
        """All calls of ECR's API so far, in order, except malformed requests and those that the
        client broke off."""
        self._port = check_int("port", port, minimum=0, maximum=65_535)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0  # of the process that has the threads

    @property
    def registry(self) -> Registry:
        """The content of the registry. Assign another ``Registry`` to replace it."""
        return self._service.registry

    @registry.setter
    def registry(self, registry: Registry) -> None:
        self._service.registry = registry

    def __repr__(self) -> str:
        state = "not running" if self._server is None else f"at {self.endpoint_url}"
        return f"<LocalECR {state}, repositories: {', '.join(self.registry.repositories) or None}>"

    def start(self) -> None:
        """Start to listen on 127.0.0.1."""
        if self._server is not None:
            raise RuntimeError("this LocalECR is already running")
        self._service.stopped.clear()
        self._pid = os.getpid()
        self._server = Server(self._service, self._port)
        self._thread = threading.Thread(target=self._server.serve, name="LocalECR", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and end all threads. What is stored is kept.

        In a forked child, only the sockets that it has inherited are closed: its parent goes on to
        serve.
        """
        if self._server is None or self._thread is None:
            return
        if self._pid == os.getpid():
            self._service.stopped.set()
            self._server.shutdown()
            self._thread.join()
            self._server.break_connections()
            self._server.server_close()
        else:
            self._server.close_in_child()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """The URL for clients."""
        if self._server is None:
            raise RuntimeError("this LocalECR is not running: call start(), or use it in a with")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @overload
    def client(self, service: Literal["ecr"] = "ecr", **kwargs: object) -> ECRClient: ...

    @overload
    def client(self, service: Literal["ecr-public"], **kwargs: object) -> ECRPublicClient: ...

    @overload
    def client(self, service: str = "ecr", **kwargs: object) -> Any: ...

    def client(self, service: str = "ecr", **kwargs: object) -> Any:
        """A botocore client for it (``"ecr"`` or ``"ecr-public"``), with ``CLIENT_CONFIG``.

        ``kwargs`` are passed to ``create_client`` and override what is set here. For type checkers
        that find the package boto3-stubs, it has the type of a boto3 client; for others, ``Any``.
        """
        settings: dict[str, Any] = {
            "region_name": _REGION,
            "aws_access_key_id": "local",
            "aws_secret_access_key": "local",
            "config": CLIENT_CONFIG.merge(Config(proxies={})),
        }
        if "endpoint_url" not in kwargs:
            settings["endpoint_url"] = self.endpoint_url
        # A session keeps the credentials that it finds, so it is not shared if it looks for some.
        session = _session() if kwargs.get("aws_access_key_id", "") is not None else _new_session()
        with _creating_client:  # a session is not thread-safe
            return session.create_client(service, **(settings | kwargs))

    def environ(self) -> dict[str, str]:
        """Environment variables that point the AWS SDKs and the AWS CLI at it.

        Hosts that are exempt from a proxy already stay exempt.
        """
        exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        no_proxy = f"{exempt},127.0.0.1" if exempt else "127.0.0.1"
        return {
            "AWS_ENDPOINT_URL_ECR": self.endpoint_url,
            "AWS_ENDPOINT_URL_ECR_PUBLIC": self.endpoint_url,
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }

    def fail(self, operation: str, fault: Fault, *, call: int = 1, times: int = 1) -> None:
        """Inject ``fault`` into ``times`` calls of ``operation``; ``call=1`` is the next one.

        If several are planned for a call, the first one planned wins. Raises ``ValueError`` for
        unknown operations and faults.
        """
        if not isinstance(fault, str):
            raise TypeError(
                f"fault must be a str, not {short_repr(fault)}: use respond() for answers"
            )
        with self._service.lock:
            self._service.faults.plan(operation, fault, call=call, times=times)

    def respond(
        self,
        operation: str,
        answer: Mapping[str, object] | bytes | EcrError,
        *,
        status: int = 200,
        call: int = 1,
        times: int = 1,
    ) -> None:
        """Answer ``times`` calls of ``operation`` with ``answer``; ``call=1`` is the next one.

        ``answer`` is a JSON object, a raw body with the HTTP ``status``, or an ``EcrError``. With
        an ``EcrError``, the call is not carried out. Otherwise it is, and its answer is replaced.
        """
        check_int("status", status, minimum=200, maximum=599)
        effect: Effect
        if isinstance(answer, EcrError):
            effect = answer
        elif isinstance(answer, bytes):
            effect = Response(status, answer)
        elif isinstance(answer, Mapping):
            effect = Response(status, json.dumps(dict(answer)).encode())
        else:
            shown = short_repr(answer)
            raise TypeError(f"answer must be a mapping, bytes or an EcrError, not {shown}")
        with self._service.lock:
            self._service.faults.plan(operation, effect, call=call, times=times)

    def calls_of(self, operation: str) -> list[Call]:
        """The calls of ``operation`` so far, in order."""
        return [call for call in self.calls if call.operation == operation]

    def layer(self, repository: str, digest: str) -> bytes:
        """The bytes of a completed layer; ``KeyError`` if there is none."""
        with self._service.lock:
            layers = self.registry.repositories[repository].layers
            if digest not in layers:
                raise KeyError(f"repository {repository!r} has no layer {digest}")
            return b"".join(layers[digest].blobs)


_creating_client = threading.Lock()


@cache
def _session() -> Session:
    """Shared, because most of a client's cost is its session."""
    return _new_session()


def _new_session() -> Session:
    session = Session()
    session.register_component("data_loader", model_loader())
    return session
