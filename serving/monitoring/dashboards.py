"""Grafana dashboards, from code: `python -m serving.monitoring.dashboards` writes manifests/monitoring/dashboards/*.json.

Service: are requests answered, in time? Model: what does it say, and is it right? Data: what comes in, and is it like the
training data?
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parents[2] / "manifests" / "monitoring" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
JOB = 'job="$job"'
WINDOW = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        title: what it answers.
        unit: Grafana's name of the unit.
        queries: legend to PromQL; ``JOB`` and ``WINDOW`` are the dashboard's variables.
        kind: timeseries, stat, bars (the latest values) or heatmap (of a histogram's buckets).
        limit: line that should not be crossed.
        width: in 24ths of the screen.
    """

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    limit: float | None = None
    width: int = 8
    about: str = field(default="")


def _quantile(q: float, name: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({name}_bucket{{{JOB}}}[{WINDOW}])))"


def _heat(name: str, matchers: str = JOB) -> dict[str, str]:
    return {"{{le}}": f"sum by (le) (increase({name}_bucket{{{matchers}}}[{WINDOW}]))"}


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}{{{JOB}}}[{WINDOW}]))"


SERVICE: dict[str, list[Panel]] = {
    "Promises": [
        Panel(
            "Answered without the server's fault, last hour",
            "percentunit",
            {"share": f"1 - covidnet:request_errors:ratio_rate1h{{{JOB}}}"},
            kind="stat",
            limit=0.995,
        ),
        Panel(
            "Answered within 2.5 s, last hour",
            "percentunit",
            {"share": f"1 - covidnet:slow_requests:ratio_rate1h{{{JOB}}}"},
            kind="stat",
            limit=0.95,
        ),
        Panel(
            "Bundles that serve",
            "none",
            {"{{version}} {{model}} {{engine}}": f"count by (version, model, engine) (covidnet_bundle_info{{{JOB}}})"},
            kind="stat",
        ),
    ],
    "Requests": [
        Panel("Requests by outcome", "reqps", {"{{outcome}}": _rate("covidnet_requests_total", "outcome")}),
        Panel(
            "Requests by route",
            "reqps",
            {
                "{{route}} {{protocol}}": _rate("covidnet_requests_total", "route, protocol"),
                "TorchServe {{model_name}}": _rate("ts_inference_requests_total", "model_name"),
            },
        ),
        Panel("Refusals by reason", "reqps", {"{{reason}}": _rate("covidnet_rejected_requests_total", "reason")}),
        Panel(
            "Time to the answer",
            "s",
            {
                **{f"p{q:g}": _quantile(q / 100, "covidnet_request_seconds") for q in (50, 95, 99)},
                "TorchServe, mean": f"sum(rate(ts_inference_latency_microseconds{{{JOB}}}[{WINDOW}])) / 1e6 / "
                f"sum(rate(ts_inference_requests_total{{{JOB}}}[{WINDOW}]))",
            },
            limit=2.5,
        ),
        Panel("95 % of each phase within", "s", {"{{phase}}": _quantile(0.95, "covidnet_phase_seconds", "phase")}),
        Panel(
            "In flight, and the limit",
            "none",
            {
                "in flight": f"sum(covidnet_requests_in_flight{{{JOB}}})",
                "limit": f"sum(covidnet_requests_limit{{{JOB}}})",
                "waiting for the network": f"sum(covidnet_queue_scans{{{JOB}}})",
            },
        ),
    ],
    "Machine": [
        Panel("Scans per run of the network", "none", _heat("covidnet_batch_scans"), kind="heatmap"),
        Panel("Memory", "bytes", {"{{instance}}": f"process_resident_memory_bytes{{{JOB}}}"}),
        Panel("Processor", "none", {"{{instance}}": f"rate(process_cpu_seconds_total{{{JOB}}}[{WINDOW}])"}),
        Panel(
            "GPU",
            "percentunit",
            {
                "{{instance}} {{gpu}} at work": f"covidnet_gpu_utilization_ratio{{{JOB}}}",
                "{{instance}} {{gpu}} memory": f"covidnet_gpu_memory_used_bytes{{{JOB}}} "
                f"/ covidnet_gpu_memory_bytes{{{JOB}}}",
            },
        ),
    ],
}
MODEL: dict[str, list[Panel]] = {
    "Answers": [
        Panel("Scans by predicted class", "none", {"{{label}}": _rate("covidnet_predictions_total", "label")}),
        Panel(
            "Share of each class, last hour",
            "percentunit",
            {
                "{{label}}": f"sum by (label) (increase(covidnet_predictions_total{{{JOB}}}[1h])) / ignoring (label) "
                f"group_left () sum(increase(covidnet_predictions_total{{{JOB}}}[1h]))",
                "{{label}}, expected": f"max by (label) (covidnet_expected_predictions_ratio{{{JOB}}})",
            },
            kind="bars",
        ),
        Panel("Confidence", "percentunit", _heat("covidnet_confidence_ratio"), kind="heatmap"),
        Panel("Entropy", "percentunit", _heat("covidnet_entropy_ratio"), kind="heatmap"),
        Panel("Unlike the training data: score", "none", _heat("covidnet_out_of_distribution_score"), kind="heatmap"),
        Panel(
            "Unlike the training data: share",
            "percentunit",
            {"last hour": f"covidnet:out_of_distribution:ratio_increase1h{{{JOB}}}"},
            limit=0.2,
        ),
    ],
    "Truth": [
        Panel(
            "Live sensitivity, 95 % interval",
            "percentunit",
            {"{{label}} {{bound}}": f"avg by (label, bound) (covidnet_live_sensitivity_ratio{{{JOB}}})"},
        ),
        Panel(
            "Live specificity, 95 % interval",
            "percentunit",
            {"{{label}} {{bound}}": f"avg by (label, bound) (covidnet_live_specificity_ratio{{{JOB}}})"},
        ),
        Panel(
            "Confidence minus accuracy, 95 % interval",
            "percentunit",
            {"{{bound}}": f"avg by (bound) (covidnet_live_calibration_gap_ratio{{{JOB}}})"},
        ),
        Panel(
            "Scans with feedback, true class and predicted",
            "none",
            {"{{label}} as {{predicted}}": f"sum by (label, predicted) (covidnet_feedback_total{{{JOB}}})"},
            kind="bars",
            width=12,
        ),
        Panel(
            "Errors of the store",
            "none",
            {
                "failed": f"sum(increase(covidnet_store_errors_total{{{JOB}}}[{WINDOW}]))",
                "lost": f"sum(increase(covidnet_store_lost_predictions_total{{{JOB}}}[{WINDOW}]))",
            },
            width=12,
        ),
    ],
}
DATA: dict[str, list[Panel]] = {
    "Drift": [
        Panel(
            "Drift of the last 200 scans, over its limit",
            "none",
            {"{{feature}}": f"max by (feature) (covidnet_drift_ratio{{{JOB}}})"},
            limit=1.0,
            width=12,
        ),
        Panel(
            "Population stability index of all replicas, last hour",
            "none",
            {"{{feature}}": f"covidnet:drift_psi:increase1h{{{JOB}}}"},
            kind="bars",
            limit=0.25,
            width=12,
        ),
    ],
    "Input": [
        Panel("Slices", "none", _heat("covidnet_input_slices"), kind="heatmap"),
        Panel("Slice distance", "lengthm", _heat("covidnet_input_spacing_meters", f'{JOB}, axis="z"'), kind="heatmap"),
        Panel("Pixel distance", "lengthm", _heat("covidnet_input_spacing_meters", f'{JOB}, axis="x"'), kind="heatmap"),
        Panel(
            "Median of each statistic in Hounsfield units",
            "none",
            {"{{statistic}}": _quantile(0.5, "covidnet_input_hounsfield", "statistic")},
        ),
        Panel("Lung volume", "litre", _heat("covidnet_input_lung_liters"), kind="heatmap"),
        Panel("Lungs' share of the body", "percentunit", _heat("covidnet_input_lung_ratio"), kind="heatmap"),
        Panel(
            "Unreadable, or without lungs",
            "reqps",
            {
                "unreadable": f"sum(rate(covidnet_rejected_requests_total{{{JOB},"
                f'reason=~"unreadable|unknown_format"}}[{WINDOW}]))',
                "no lungs found": f"sum(rate(covidnet_no_lungs_found_total{{{JOB}}}[{WINDOW}]))",
            },
        ),
    ],
}
DASHBOARDS = {"service": SERVICE, "model": MODEL, "data": DATA}


def build(name: str, rows: dict[str, list[Panel]]) -> dashboard.Dashboard:
    """A dashboard with the variables ``datasource`` and ``job``."""
    made = (
        dashboard.Dashboard(f"covidnet: {name}")
        .uid(f"covidnet-{name}")
        .tags(["covidnet"])
        .refresh("30s")
        .time("now-6h", "now")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Data source"))
        .with_variable(
            dashboard.QueryVariable("job")
            .label("Job")
            .datasource(SOURCE)
            .query("label_values(covidnet_bundle_info, job)")
        )
    )
    for title, panels in rows.items():
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(_KINDS[panel.kind](panel))
    return made


def _timeseries(panel: Panel) -> Any:
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    return _common(timeseries.Panel(), panel).legend(legend).fill_opacity(8).min(0 if panel.limit else None)


def _stat(panel: Panel) -> Any:
    made = _common(stat.Panel(), panel).reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    return made.color_mode(BigValueColorMode.VALUE).text_mode("auto" if panel.limit else "name")


def _bars(panel: Panel) -> Any:
    return _common(bargauge.Panel(), panel).reduce_options(ReduceDataOptions().calcs(["lastNotNull"])).min(0)


def _heatmap(panel: Panel) -> Any:
    colors = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    return _common(heatmap.Panel(), panel).calculate(False).color(colors)


_KINDS: dict[str, Callable[[Panel], Any]] = {
    "timeseries": _timeseries,
    "stat": _stat,
    "bars": _bars,
    "heatmap": _heatmap,
}


def _common(made: Any, panel: Panel) -> Any:
    made = made.title(panel.title).unit(panel.unit).span(panel.width).height(8).datasource(SOURCE)
    for letter, (legend, query) in zip("ABCDEFGH", panel.queries.items(), strict=False):
        target = prometheus.Dataquery().expr(query).legend_format(legend).ref_id(letter).datasource(SOURCE)
        if panel.kind == "heatmap":
            target = target.format(PromQueryFormat.HEATMAP)
        made = made.with_target(target)
    if panel.limit is not None:
        good_above = panel.kind == "stat"
        colors = ("red", "green") if good_above else ("green", "red")
        steps = [Threshold(value=None, color=colors[0]), Threshold(value=panel.limit, color=colors[1])]
        made = made.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    return made


def render(name: str) -> str:
    """The dashboard's JSON."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build(name, DASHBOARDS[name]).build()) + "\n"


if __name__ == "__main__":
    for title in DASHBOARDS:
        FOLDER.joinpath(f"{title}.json").write_text(render(title))
