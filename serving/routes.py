"""For people and scripts: upload a scan, see what the model saw; try a synthetic one; the page at `/`."""

import asyncio
import base64
import secrets
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from fastapi import FastAPI, Request, Response
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.exceptions import HTTPException

from covidnet.data.scan import Scan
from covidnet.data.sources import phantom
from serving import decode, openapi
from serving.answers import Answer
from serving.errors import Invalid, laying_down
from serving.gate import Gate
from serving.predictor import Predictor
from serving.rest import admitted, receive_body

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_UPLOAD_BYTES = 512 * 2**20  # compressed; 1,000 slices of 512 x 512 as JPEG Lossless are 250 MiB
PNG, NIFTI, FORM, JSON = "image/png", "application/x-nifti", "multipart/form-data", "application/json"
NIIVUE = "niivue-0.69.0.umd.js"
ASSETS = {"page.css": "text/css", "page.js": "text/javascript", NIIVUE: "text/javascript", "LICENSE": "text/plain"}
# NiiVue compiles a part of itself to WebAssembly, and reads its typeface from a data URL
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_routes(app: FastAPI, predictor: Predictor, gate: Gate) -> None:
    """Add ``POST /v1/scans``, ``POST /v1/phantoms/{label}``, ``GET /openapi.json`` and the page at ``GET /``."""

    async def scans(request: Request) -> Response:
        """A scan as raw body or as the one file of a form; ``Accept`` chooses the answer, see `_answer`."""
        async with admitted(request, "scans", gate, MAX_UPLOAD_BYTES):
            # the scan lies here, and goes with it
            with laying_down(), tempfile.TemporaryDirectory(prefix="covidnet-") as folder:
                return await _answer(request, predictor, await _receive(request, Path(folder)))

    async def phantoms(label: str, request: Request) -> Response:
        """A synthetic scan of a class, another one each time; answers as `scans`."""
        async with admitted(request, "phantoms", gate, 0):
            if label not in phantom.LABELS:
                raise Invalid(f"expected one of the synthetic classes {', '.join(phantom.LABELS)}")
            index = secrets.randbelow(2**31)
            made = await asyncio.to_thread(phantom.generate, label, seed=0, index=index)
            return await _answer(request, predictor, made.scan)

    app.add_api_route("/v1/scans", scans, methods=["POST"], response_model=None)
    app.add_api_route("/v1/phantoms/{label}", phantoms, methods=["POST"], response_model=None)
    _add_document(app, predictor)
    _add_page(app)


def _add_document(app: FastAPI, predictor: Predictor) -> None:
    async def document() -> Response:
        found = openapi.document(predictor.spec.size, tuple(predictor.bundle.labels))
        return Response(orjson.dumps(found), media_type=JSON)

    app.add_api_route("/openapi.json", document, methods=["GET"], response_model=None)


def _add_page(app: FastAPI) -> None:
    folder = resources.files("serving").joinpath("page")
    page = folder.joinpath("index.html").read_bytes()
    assets = {name: folder.joinpath(name).read_bytes() for name in ASSETS}

    async def index() -> Response:
        return Response(page, headers={"content-security-policy": PAGE_POLICY}, media_type="text/html; charset=utf-8")

    async def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404)
        headers = {"cache-control": "max-age=31536000, immutable" if name == NIIVUE else "no-cache"}
        return Response(assets[name], headers=headers, media_type=f"{ASSETS[name]}; charset=utf-8")

    app.add_api_route("/", index, methods=["GET"], response_model=None)
    app.add_api_route("/static/{name}", asset, methods=["GET"], response_model=None)


async def _answer(request: Request, predictor: Predictor, source: Path | Scan) -> Response:
    """What ``Accept`` asks for.

    * JSON, the default; with ``?overlay=true`` it has a picture of the slices with the map, as a data URL.
    * ``image/png``: that picture.
    * ``application/x-nifti``: the map alone on the grid of the file, ``.nii.gz``.
    * ``multipart/form-data``, for the page: ``answer`` (the JSON), ``scan`` and ``map`` (``.nii`` on one grid).
    """
    accept = request.headers.get("accept", "")
    if "nifti" in accept:
        (answer,) = await predictor.classify([source], frozenset({"cam_nifti"}))
        content = b"" if answer.scan_map is None else answer.scan_map.nifti
        return Response(content, headers={"content-disposition": 'attachment; filename="map.nii.gz"'}, media_type=NIFTI)
    overlay = request.query_params.get("overlay") == "true"
    if not accept.startswith((PNG, FORM)) and not overlay:
        return Response(_json(predictor, (await predictor.classify([source]))[0]), media_type=JSON)
    answer, decoded = await predictor.classify_drawn(source)
    if accept.startswith(FORM):
        return _form(_json(predictor, answer), *await predictor.viewer(decoded, answer))
    picture = await predictor.png(decoded, answer)
    if accept.startswith(PNG):
        return Response(picture, media_type=PNG)
    url = f"data:{PNG};base64,{base64.b64encode(picture).decode()}"
    return Response(_json(predictor, answer, overlay=url), media_type=JSON)


def _json(predictor: Predictor, answer: Answer, **more: str) -> bytes:
    return orjson.dumps({**answer.to_dict(), "model_version": predictor.bundle.version, **more})


def _form(answer: bytes, scan: bytes, heat: bytes) -> Response:
    """Three parts, which a browser takes apart by itself (``Response.formData``)."""
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []
    for name, kind, content in (("answer", JSON, answer), ("scan", NIFTI, scan), ("map", NIFTI, heat)):
        disposition = f'form-data; name="{name}"; filename="{name}"'
        head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: {kind}\r\n\r\n"
        parts += [head.encode(), content, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return Response(b"".join(parts), media_type=f"{FORM}; boundary={boundary}")


async def _receive(request: Request, folder: Path) -> Path:
    """Stream the upload to disk; its file name is ours, with the ending that its content has.

    Raises:
        UnknownFormat: the content is of no format that is read here.
        TooLarge, Invalid: see `serving.rest.receive_body`.
    """
    path = folder / "scan"
    content_type = request.headers.get("content-type", "")
    with path.open("wb") as stream:
        if content_type.startswith("multipart/form-data"):
            form = _OneFileForm(content_type, stream.write)
            await receive_body(request, MAX_UPLOAD_BYTES, form.write)
            form.end()
        else:
            await receive_body(request, MAX_UPLOAD_BYTES, stream.write)
    with path.open("rb") as stream:
        ending = decode.suffix(stream.read(decode.HEAD_BYTES))
    return path.rename(path.with_suffix(ending))


class _OneFileForm:
    """Passes on the content of a form's only part as it comes in; frameworks would first collect it elsewhere.

    Raises:
        Invalid: not a form, or not of one part.
    """

    def __init__(self, content_type: str, write: Callable[[bytes], object]) -> None:
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise Invalid("multipart/form-data: expected a boundary")
        self._parts = 0
        self._pass_on = write
        callbacks: MultipartCallbacks = {"on_part_begin": self._begin, "on_part_data": self._data}
        self._parser = MultipartParser(options[b"boundary"], callbacks)

    def write(self, chunk: bytes) -> None:
        """Take the next piece of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise Invalid("the body is not multipart/form-data") from None

    def end(self) -> None:
        """Check that the form was whole."""
        if self._parts != 1 or self._parser.state != MultipartState.END:
            raise Invalid("expected a form of one file, complete")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise Invalid("expected a form of one file")

    def _data(self, chunk: bytes, start: int, end: int) -> None:
        self._pass_on(chunk[start:end])
