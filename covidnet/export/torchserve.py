"""A bundle as TorchServe takes it: `config/config.properties` and `model-store/covidnet.mar`, as KServe lays them out.

    write(Path("results/export/bundle"), Path("results/export-torchserve"), serving=Path("serving"))

The archive holds the bundle, the handler, and the Python sources that it runs, so that a model and its preprocessing
can't come apart. The second choice beside the KServe predictor: TorchServe has had no release since March 2025.
"""

import json
import shutil
import zipfile
from pathlib import Path

from safetensors.torch import load_file

import covidnet
from covidnet.errors import CovidnetError
from covidnet.export import bundle as bundles
from covidnet.export.bundle import Bundle
from covidnet.models import baselines, covidnet3d
from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import Genotype

NAME = "covidnet"
BUNDLE = "bundle"  # folder in the archive
BATCH = 8  # requests that one run of the network answers
BATCH_DELAY_MS = 10  # that a request waits at most for others
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first moment: the same bundle gives the same archive

# Ports and paths as in KServe's examples. Management can load code, so it listens on loopback only. A token that expires
# would cut off clients that can't reach the management port to renew it: it lives as long as the server.
CONFIG = """\
inference_address=http://0.0.0.0:8085
management_address=http://127.0.0.1:8081
metrics_address=http://0.0.0.0:8082
grpc_inference_port=7070
grpc_management_address=127.0.0.1
grpc_management_port=7071
disable_token_authorization=false
token_expiration_min=5256000
enable_envvars_config=true
ts_open_inference_protocol=oip
enable_metrics_api=true
metrics_mode=prometheus
model_metrics_auto_detect=true
install_py_dep_per_model=false
enable_model_api=false
decode_input_request=false
max_request_size=33554432
max_response_size=33554432
job_queue_size=32
model_store=/mnt/models/model-store
model_snapshot={snapshot}
"""


def write(bundle_dir: Path, out: Path, serving: Path) -> Path:
    """Write TorchServe's folder, in place of what an earlier call left there.

    Args:
        bundle_dir: folder that `covidnet export` wrote.
        out: gets ``config/config.properties`` and ``model-store/covidnet.mar``.
        serving: folder of the package that the handler is in.

    Returns:
        the archive.

    Raises:
        CovidnetError: the bundle is damaged, or its weights don't belong to its architecture.
    """
    bundle = Bundle.load(bundle_dir)
    network(bundle)
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    (work / "config").mkdir(parents=True)
    (work / "model-store").mkdir()
    (work / "config" / "config.properties").write_text(CONFIG.format(snapshot=json.dumps(_snapshot())))
    _archive(bundle, work / "model-store" / f"{NAME}.mar", serving)
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)
    return out / "model-store" / f"{NAME}.mar"


def network(bundle: Bundle) -> Classifier:
    """The bundle's network from architecture and weights, in evaluation mode.

    Raises:
        CovidnetError: the weights don't belong to the architecture.
    """
    if "blocks" in bundle.genotype:
        model = covidnet3d.build(Genotype.load(bundle.path / bundles.GENOTYPE))
    else:
        tree = bundle.genotype
        model = baselines.build(tree["name"], tree["channels"], len(bundle.labels), tuple(tree["size"]))
    try:
        model.load_state_dict(load_file(bundle.path / bundles.WEIGHTS))
    except RuntimeError as error:
        raise CovidnetError(
            f"{bundle.path}: the weights don't fit the architecture: {str(error).splitlines()[0]}; {bundles.REMEDY}"
        ) from None
    return model.eval()


def _snapshot() -> dict[str, object]:
    model = {
        "defaultVersion": True,
        "marName": f"{NAME}.mar",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": BATCH,
        "maxBatchDelay": BATCH_DELAY_MS,
        "responseTimeout": 120,
    }
    return {"name": "startup.cfg", "modelCount": 1, "models": {NAME: {"1.0": model}}}


def _archive(bundle: Bundle, target: Path, serving: Path) -> None:
    """Write what `torch-model-archiver` would, which stamps the archive with the time, and packs through a folder of
    the model's name in the temporary folder, deleting what it finds there."""
    handler = serving / "torchserve" / "handler.py"
    manifest = {
        "runtime": "python",
        "model": {"modelName": NAME, "handler": handler.name, "modelVersion": "1.0"},
        "archiverVersion": "0.12.0",
        "covidnet": {"version": covidnet.__version__, "bundle": bundle.version},
    }
    files = {handler.name: handler}
    files |= {f"{BUNDLE}/{name}": bundle.path / name for name in (*bundles.FILES, bundles.SUMS)}
    for package in (Path(covidnet.__file__).parent, serving):
        files |= {str(path.relative_to(package.parent)): path for path in package.rglob("*.py")}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("MAR-INF/MANIFEST.json", _EPOCH), json.dumps(manifest, indent=2))
        for name, path in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
