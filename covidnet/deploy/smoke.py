"""Is the served candidate the bundle that was exported, and does it hold up while its traffic grows?"""

import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from covidnet.config import Deploy
from covidnet.data.sources import phantom
from covidnet.deploy.endpoint import Endpoint, EndpointError
from covidnet.deploy.findings import Findings
from covidnet.errors import CovidnetError
from covidnet.export.bundle import Bundle
from covidnet.inference.engine import load
from covidnet.inference.predict import OUT_OF_DISTRIBUTION, predict


def smoke_test(endpoint: Endpoint, bundle: Path, volumes: np.ndarray, settings: Deploy) -> Findings:
    """Compare the candidate's answers with those of its bundle, computed here.

    Args:
        endpoint: of the candidate.
        bundle: the exported folder.
        volumes: prepared scans that it should know, ``uint8 (N, D, H, W)``.
        settings: tolerance.
    """
    findings, opened = Findings(), Bundle.load(bundle)
    findings.add(endpoint.ready(), "the model says that it takes requests")
    expected = load(opened).run(np.ascontiguousarray(volumes[:, None])).probabilities  # (N, K)
    try:
        answers = endpoint.classify(volumes)
        findings.add(
            answers.version in (opened.version, "", "1"),  # other runtimes count versions from 1
            f"it serves bundle {opened.version} (told: {answers.version or 'nothing'})",
        )
        _compare(findings, f"{len(volumes)} prepared scans", answers.probabilities, expected, settings.tolerance)
        if answers.flags:
            noise = np.random.default_rng(0).integers(0, 256, (1, *volumes.shape[1:]), dtype=np.uint8)
            flagged = any(OUT_OF_DISTRIBUTION in flags for flags in endpoint.classify(noise).flags)
            findings.add(flagged, "noise in place of a scan is flagged as out of distribution")
            _check_file(findings, endpoint, bundle, settings)
    except EndpointError as error:
        findings.add(False, str(error))
        return findings
    try:
        endpoint.classify(volumes[:1, :-1])
        findings.add(False, "a volume of the wrong shape was answered, expected a refusal")
    except EndpointError as error:
        findings.add("answered 4" in str(error), f"a volume of the wrong shape is refused ({error})")
    return findings


def watch(canary: Endpoint, stable: Endpoint | None, volumes: np.ndarray, settings: Deploy) -> Findings:
    """Send scans to both models for `watch_s` seconds and compare failures and latency.

    Args:
        canary: the candidate alone.
        stable: the service as its users reach it; None for the first model of a service.
        volumes: prepared scans, ``uint8 (N, D, H, W)``.
        settings: duration and bounds.
    """
    times: dict[Endpoint, list[float]] = {canary: [], **({stable: []} if stable else {})}
    failed = dict.fromkeys(times, 0)
    deadline, turn = time.monotonic() + settings.watch_s, 0
    while not turn or time.monotonic() < deadline:
        scan = volumes[turn % len(volumes)][None]
        for endpoint in times:
            try:
                times[endpoint].append(endpoint.classify(scan).seconds)
            except EndpointError:
                failed[endpoint] += 1
        turn += 1
        time.sleep(settings.pause_s)
    findings = Findings()
    for endpoint, name in [(canary, "canary"), *([(stable, "service")] if stable else [])]:
        rate = failed[endpoint] / turn
        text = f"{name}: {failed[endpoint]} of {turn} requests failed (at most {settings.max_error_rate:.1%})"
        findings.add(rate <= settings.max_error_rate, text)
    if stable and times[canary] and times[stable]:
        here, there = (1e3 * float(np.quantile(times[endpoint], 0.95)) for endpoint in (canary, stable))
        bound = settings.max_latency_ratio
        text = f"95th percentile of {here:.0f} ms beside {there:.0f} ms (at most {bound:g} times)"
        findings.add(here <= bound * there, text)
    return findings


def _check_file(findings: Findings, endpoint: Endpoint, bundle: Path, settings: Deploy) -> None:
    """The whole way of a raw scan, decoding and preprocessing included, on a synthetic one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        nibabel.save(_nifti(), path)
        here = next(iter(predict([path], bundle)))
        there = endpoint.classify_file(path.read_bytes())
    if "error" in here:
        raise CovidnetError(f"the synthetic scan of the smoke test can't be read here: {here['error']}")
    expected = np.array([list(here["probabilities"].values())], np.float32)
    _compare(findings, "a NIfTI file", there.probabilities, expected, settings.tolerance)


def _nifti() -> nibabel.Nifti1Image:
    scan = phantom.generate("NCP", seed=0, index=0, detail=(24, 64, 64)).scan  # (D, H, W)
    z, y, x = scan.spacing_mm
    # NIfTI's axes point right, anterior and superior, ours the other way
    return nibabel.Nifti1Image(scan.voxels.transpose(2, 1, 0).astype(np.int16), np.diag([-x, -y, -z, 1.0]))


def _compare(findings: Findings, what: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    if found.shape != expected.shape:
        findings.add(False, f"{what}: probabilities of shape {list(found.shape)}, expected {list(expected.shape)}")
        return
    difference = float(np.abs(found - expected).max())
    findings.add(
        difference <= tolerance, f"{what}: probabilities differ by {difference:.1e} at most (within {tolerance:g})"
    )
