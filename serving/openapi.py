"""What the HTTP side takes and gives, as an OpenAPI document at `/openapi.json`.

Written by hand: routes read their bodies themselves, piece by piece, so FastAPI has no types to derive it from. The tests
have schemathesis draw requests from it, and hold the server to it.
"""

from typing import Any

from covidnet import __version__
from covidnet.data.sources import phantom
from serving.protocol import INPUTS, MAPS, MAX_SCANS, MAX_TIMEOUT_US, OUTPUTS, SPACING_MM

Tree = dict[str, Any]
BINARY: Tree = {"type": "string", "format": "binary"}


def document(size: tuple[int, int, int], labels: tuple[str, ...]) -> Tree:
    """OpenAPI 3.1.

    Args:
        size: ``(D, H, W)`` of prepared volumes.
        labels: classes of the model.
    """
    model = {"name": "model_name", "in": "path", "required": True, "schema": {"const": "covidnet"}}
    overlay = {
        "name": "overlay",
        "in": "query",
        "schema": {"type": "boolean"},
        "description": "with a picture of the map",
    }
    made = {"name": "label", "in": "path", "required": True, "schema": {"enum": list(phantom.LABELS)}}
    scan = {"application/octet-stream": {"schema": BINARY}, "multipart/form-data": {"schema": _object(file=BINARY)}}
    told = _object(request_id={"type": "string", "maxLength": 64}, label={"enum": list(labels)})
    answer = {
        "application/json": {"schema": {"$ref": "#/components/schemas/Prediction"}},
        "image/png": {"schema": BINARY},
        "application/x-nifti": {"schema": BINARY},
        "multipart/form-data": {"schema": {"type": "object"}},
    }
    predictions = _json({"type": "object", "required": ["predictions", "model_version"]})
    tensors = _json({"type": "object", "required": ["model_name", "model_version", "outputs"]})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "covidnet3d",
            "version": __version__.partition("+")[0],
            "description": "Classifies chest CT scans. Research software: no output is a diagnosis.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/v1/models": {"get": _get("Models, in protocol V1")},
            "/v1/models/{model_name}": {"parameters": [model], "get": _get("Ready?")},
            "/v1/models/{model_name}:predict": {
                "parameters": [model],
                "post": _post("Classify", _json(_v1(size)), predictions),
            },
            "/v1/models/{model_name}:explain": {
                "parameters": [model],
                "post": _post("Classify, with class activation maps", _json(_v1(size)), predictions),
            },
            "/v2": {"get": _get("Name and version of the server")},
            "/v2/health/live": {"get": _get("Alive?")},
            "/v2/health/ready": {"get": _get("Ready? Not while it stops")},
            "/v2/models": {"get": _get("Models, in protocol V2")},
            "/v2/models/{model_name}": {"parameters": [model], "get": _get("Tensors of requests and answers")},
            "/v2/models/{model_name}/ready": {"parameters": [model], "get": _get("Ready?")},
            "/v2/models/{model_name}/infer": {
                "parameters": [model],
                "post": _post("Classify, by the Open Inference Protocol", _json(_v2(size)), tensors),
            },
            "/v1/scans": {"post": _post("Classify a file: NIfTI, DICOM, or a zip of a series", scan, answer, overlay)},
            "/v1/phantoms/{label}": {
                "parameters": [made],
                "post": _post("Classify a synthetic scan", None, answer, overlay),
            },
            "/v1/feedback": {
                "post": _post("Tell the truth about a scan that was answered", _json(told), _json(told), created=True)
            },
        },
        "components": {
            "schemas": {"Prediction": _prediction(labels), "Error": _object(error={"type": "string"})},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _object(**properties: Tree) -> Tree:
    """All of them, and nothing else."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _json(schema: Tree) -> Tree:
    return {"application/json": {"schema": schema}}


def _get(summary: str) -> Tree:
    return {"summary": summary, "responses": _responses(_json({"type": "object"}))}


def _post(summary: str, body: Tree | None, answer: Tree, *parameters: Tree, created: bool = False) -> Tree:
    responses = _responses(answer)
    if created:
        responses["201"] = responses["200"]
    made: Tree = {"summary": summary, "parameters": list(parameters), "responses": responses}
    return made if body is None else {**made, "requestBody": {"required": True, "content": body}}


def _responses(content: Tree) -> Tree:
    """The answer, and what is said where there is none: to a request that isn't right, and to one that comes too late."""
    error = {"description": "why not", "content": _json({"$ref": "#/components/schemas/Error"})}
    return {"200": {"description": "the answer", "content": content}, "4XX": error, "503": error}


def _prediction(labels: tuple[str, ...]) -> Tree:
    number = {"type": "number"}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    properties = {
        "label": {"enum": list(labels)},
        "probabilities": _object(**dict.fromkeys(labels, share)),
        "flags": {"type": "array", "items": {"type": "string"}},
        "energy": number,
        "novelty": number,
        "seconds": {"type": "object", "additionalProperties": number},
        "model_version": {"type": "string"},
    }
    found = _object(**properties)
    found["properties"]["overlay"] = {"type": "string", "description": "a PNG as data URL, where asked for"}
    return found


def _nested(item: Tree, about: str) -> Tree:
    """Lists in lists in lists; their lengths in words, for tools that draw requests would draw them to the last voxel."""
    for _ in range(3):
        item = {"type": "array", "items": item}
    return {**item, "description": about}


def _v1(size: tuple[int, int, int]) -> Tree:
    low_mm, high_mm = SPACING_MM
    mm = {"type": "number", "minimum": low_mm, "maximum": high_mm}
    scan_hu = _nested({"type": "number"}, "Hounsfield units, (D, H, W)")
    volume = _nested({"type": "integer", "minimum": 0, "maximum": 255}, f"prepared, {size}")
    instance = {
        "oneOf": [
            _object(file=_object(b64={"type": "string", "contentEncoding": "base64"})),
            _object(scan_hu=scan_hu, spacing_mm={"type": "array", "items": mm, "minItems": 3, "maxItems": 3}),
            _object(volume=volume),
        ]
    }
    return {
        "type": "object",
        "required": ["instances"],
        "properties": {
            "instances": {"type": "array", "items": instance, "minItems": 1, "maxItems": MAX_SCANS},
            "parameters": {
                "type": "object",
                "properties": {"cam": {"enum": ["model", "scan"]}, "timeout": _TIMEOUT},
            },
        },
    }


_TIMEOUT = {"type": "integer", "minimum": 0, "maximum": MAX_TIMEOUT_US, "description": "microseconds"}


def _v2(size: tuple[int, int, int]) -> Tree:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"enum": list(INPUTS)},
            "datatype": {"enum": ["UINT8", "INT16", "FP32", "BYTES"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "examples": [[1, *size]]},
            "data": {"type": "array"},
            "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}},
        },
    }
    wanted = {"type": "object", "required": ["name"], "properties": {"name": {"enum": [*OUTPUTS, *MAPS]}}}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": 256},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": len(INPUTS)},
            "outputs": {"type": "array", "items": wanted},
            "parameters": {"type": "object", "properties": {"timeout": _TIMEOUT}},
        },
    }
