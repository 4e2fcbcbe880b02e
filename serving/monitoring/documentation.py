"""The metric table of docs/monitoring.md, from the metrics themselves: `python -m serving.monitoring.documentation`."""

from pathlib import Path

from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from serving import metrics

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
BEGIN, END = "<!-- metrics: written by `python -m serving.monitoring.documentation` -->\n", "<!-- end of metrics -->\n"


def table() -> str:
    """One line per metric of the server, by name."""
    found = {metric._name: metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)}
    lines = ["| metric | type | labels | what |", "|---|---|---|---|"]
    for name, metric in sorted(found.items()):
        full = f"{name}_total" if isinstance(metric, Counter) else name
        kind = "counter" if isinstance(metric, Counter) else "histogram" if isinstance(metric, Histogram) else "gauge"
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        lines.append(f"| `{full}` | {kind} | {labels} | {metric._documentation} |")
    return "\n".join(lines) + "\n"


def render(page: str) -> str:
    """The page with the table of now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
