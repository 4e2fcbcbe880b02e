"""For people and scripts: upload a scan, see what the model saw; try a synthetic one; the page at `/`."""

import asyncio
import base64
import hashlib
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

from covidnet.data.scan import Scan
from covidnet.data.sources import phantom
from serving import decode, metrics
from serving.errors import Invalid
from serving.gate import Gate
from serving.predictor import Predictor
from serving.protocol import Answer
from serving.rest import announced, receive_body

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_UPLOAD_BYTES = 512 * 2**20  # compressed; 1,000 slices of 512 x 512 as JPEG Lossless are 250 MiB
PNG, JSON = "image/png", "application/json"


def add_routes(app: FastAPI, predictor: Predictor, gate: Gate) -> None:
    """Add ``POST /v1/scans``, ``POST /v1/phantoms/{label}`` and ``GET /``."""

    async def scans(request: Request) -> Response:
        """A scan as raw body or as the one file of a form; answers JSON, or a PNG to ``Accept: image/png``."""
        with (
            metrics.request("scans"),
            gate.admit(announced(request, MAX_UPLOAD_BYTES)),
            tempfile.TemporaryDirectory(prefix="covidnet-") as folder,  # all of the scan lies here, and goes with it
        ):
            return await _answer(request, predictor, await _receive(request, Path(folder)))

    async def phantoms(label: str, request: Request) -> Response:
        """A synthetic scan of a class, another one each time; answers as `scans`."""
        with metrics.request("phantoms"), gate.admit(0):
            if label not in phantom.LABELS:
                raise Invalid(f"expected one of the synthetic classes {', '.join(phantom.LABELS)}")
            index = secrets.randbelow(2**31)
            made = await asyncio.to_thread(phantom.generate, label, seed=0, index=index)
            return await _answer(request, predictor, made.scan)

    page, policy = _page()

    async def index() -> Response:
        return Response(page, headers={"content-security-policy": policy}, media_type="text/html; charset=utf-8")

    app.add_api_route("/v1/scans", scans, methods=["POST"], response_model=None)
    app.add_api_route("/v1/phantoms/{label}", phantoms, methods=["POST"], response_model=None)
    app.add_api_route("/", index, methods=["GET"], response_model=None)


async def _answer(request: Request, predictor: Predictor, source: Path | Scan) -> Response:
    """JSON; with ``?overlay=true`` the picture in it as a data URL; the picture alone to ``Accept: image/png``."""
    only_picture = request.headers.get("accept", "").startswith(PNG)
    if not only_picture and request.query_params.get("overlay") != "true":
        return _json(predictor, (await predictor.classify([source]))[0])
    answer, picture = await predictor.classify_drawn(source)
    if only_picture:
        return Response(picture, media_type=PNG)
    return _json(predictor, answer, overlay=f"data:{PNG};base64,{base64.b64encode(picture).decode()}")


def _json(predictor: Predictor, answer: Answer, **more: str) -> Response:
    content = {**answer.to_dict(), "model_version": predictor.bundle.version, **more}
    return Response(orjson.dumps(content), media_type=JSON)


async def _receive(request: Request, folder: Path) -> Path:
    """Stream the upload to disk; its file name is ours, with the ending that its content has.

    Raises:
        UnknownFormat: the content is of no format that is read here.
        TooLarge, TooSlow, Invalid: see `serving.rest.receive_body`.
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


def _page() -> tuple[str, str]:
    """The page, and the policy that lets the browser run nothing but what is in it."""
    page = resources.files("serving").joinpath("page.html").read_text()

    def allowed(tag: str) -> str:
        content = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return page, (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
