"""The gRPC side: KServe's servicer behind the same gate, with statuses and messages like those of REST."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext
from grpc_interceptor.server import AsyncServerInterceptor
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from covidnet.errors import UsageError
from serving import metrics
from serving.access import OPEN_METHODS, Access, Tls
from serving.errors import RETRY_AFTER_S, Busy, Draining, Invalid, Refused, TooSlow
from serving.gate import Gate
from serving.guard import log_unexpected
from serving.monitoring.correlation import GrpcCorrelation
from serving.predictor import NAME
from serving.rest import DEADLINE_S

MAX_MESSAGE_BYTES = 64 * 2**20  # gRPC's own limit is 4 MiB, KServe's 8; larger scans go as compressed file or by upload
MAX_CONCURRENT = 36  # a few above the gate's, for probes; messages are in memory before the gate sees them
MAX_TYPED_BYTES = 8 * 2**20  # of a message without raw contents: KServe makes a Python object of each number

# of a call; protobuf itself would write the message out again to tell
_MESSAGE_BYTES: ContextVar[int] = ContextVar("message_bytes")


def server(dataplane: DataPlane, gate: Gate, access: Access, tls: Tls | None, host: str, port: int) -> grpc.aio.Server:
    """A gRPC server, bound and not started.

    Raises:
        UsageError: the port is taken, or the certificate can't be used.
    """
    made = grpc.aio.server(
        interceptors=[GrpcCorrelation(), _Statuses(access), _Messages()],
        maximum_concurrent_rpcs=MAX_CONCURRENT,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half of the calls
        ],
    )
    add_GRPCInferenceServiceServicer_to_server(_Servicer(dataplane, gate, access), made)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            made.add_insecure_port(address)
        else:
            pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
            made.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        raise UsageError(f"can't listen on {host} port {port} for gRPC; give another --grpc-port") from None
    return made


class _Servicer(InferenceServicer):
    """KServe's servicer; inference is counted and bounded, and the model can't be unloaded by a caller."""

    def __init__(self, dataplane: DataPlane, gate: Gate, access: Access) -> None:
        super().__init__(dataplane, ModelRepositoryExtension(dataplane.model_registry))
        self._gate = gate
        self._access = access

    async def ModelInfer(self, request: pb.ModelInferRequest, context: ServicerContext) -> pb.ModelInferResponse:
        size_bytes = _MESSAGE_BYTES.get()
        with metrics.request("v2_infer", "grpc"), self._gate.admit(size_bytes, _client(self._access, context)):
            if not request.raw_input_contents and size_bytes > MAX_TYPED_BYTES:
                raise Invalid(f"expected tensors above {MAX_TYPED_BYTES // 2**20} MiB as raw_input_contents")
            try:
                async with asyncio.timeout(DEADLINE_S):  # a caller's own, gRPC keeps by cancelling this
                    return await super().ModelInfer(request, context)
            except TimeoutError:
                raise TooSlow(f"not answered within {DEADLINE_S} s") from None

    async def RepositoryModelLoad(self, request: Any, context: ServicerContext) -> None:
        raise NotImplementedError

    async def RepositoryModelUnload(self, request: Any, context: ServicerContext) -> None:
        raise NotImplementedError


class _Statuses(AsyncServerInterceptor):
    """Lets in who may ask; exceptions to statuses, and nothing of the request in their messages."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept(
        self, method: Callable[..., Any], request_or_iterator: Any, context: ServicerContext, method_name: str
    ) -> Any:
        try:
            if method_name.rpartition("/")[2] not in OPEN_METHODS:
                _client(self._access, context)
            return await method(request_or_iterator, context)
        except Refused as error:
            if isinstance(error, Busy | Draining):
                context.set_trailing_metadata((*context.trailing_metadata(), ("retry-after", str(RETRY_AFTER_S))))
            await context.abort(error.grpc_status, str(error))
        except ModelNotFound:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no such model here; this server has the model {NAME}")
        except ModelNotReady:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not ready")
        except InvalidInput:  # KServe's own checks, whose messages quote the request
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request has not the form of the protocol")
        except NotImplementedError:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "models are not loaded or unloaded by callers here")
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            log_unexpected(error)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")


class _Messages(grpc.aio.ServerInterceptor):
    """Reads messages within the others, so only for who may ask; gRPC itself calls a broken one an unknown error."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:  # no such method, or a stream
            return handler

        async def answer(content: bytes, context: ServicerContext) -> Any:
            try:
                request = handler.request_deserializer(content)
            except DecodeError:
                raise Invalid("the message has not the form of the protocol") from None
            _MESSAGE_BYTES.set(len(content))
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)


def _client(access: Access, context: ServicerContext) -> str | None:
    authorization = dict(context.invocation_metadata() or ()).get("authorization")
    _, _, peer = unquote(context.peer()).partition(":")  # ipv4:127.0.0.1:50000, ipv6:%5B::1%5D:50000
    address = peer.rpartition(":")[0].strip("[]")
    return access.client(authorization if isinstance(authorization, str) else None, address)
