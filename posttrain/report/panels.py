"""Which logged metric is drawn in which chart; every number of a stage lands in exactly one."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from posttrain.report.line_chart import LineChart, Point, line_chart
from posttrain.report.numerals import as_number
from posttrain.report.run_folder import Row

_LAYOUT: tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    (
        "Learning",
        (
            ("Reward", ("reward", "reward/mean", "reward/*")),
            ("Loss", ("loss", "loss/*", "nll")),
            ("Token accuracy", ("token_accuracy",)),
            ("Held-out metrics", ("eval/*",)),
            ("Reward spread in groups", ("reward_std",)),
            ("Parts of the reward", ("part/*",)),
            ("Fractions of trajectories", ("zero_signal_frac", "truncated_frac", "unscored_frac", "error_frac")),
        ),
    ),
    (
        "Policy",
        (
            ("Completion length (tokens)", ("length/*",)),
            ("Entropy (nats)", ("entropy", "entropy/*")),
            ("Divergence from the teacher (nats)", ("divergence", "teacher/reverse_kl*")),
            ("KL divergence (nats)", ("kl", "kl/*", "kl_reference")),
        ),
    ),
    (
        "Episodes",
        (
            ("Tool calls an episode", ("tools/calls_mean",)),
            ("Turns an episode", ("turns/mean",)),
            ("Episodes with no call, or with one", ("tools/no_call_frac", "tools/one_call_frac")),
            ("Episodes that repeat a call", ("tools/repeated_*_frac", "tools/spam_frac")),
            ("Failed calls", ("tools/error_frac",)),
            ("Episodes cut short or broken", ("over_*_frac", "environment_error_frac")),
        ),
    ),
    (
        "Trust region",
        (
            ("SAPO gate, mean", ("gate/*mean",)),
            ("Tokens with gate below 0.9", ("gate/*below_0.9_frac",)),
            ("Tokens with gate below 0.5", ("gate/*below_0.5_frac",)),
            ("Clipped tokens", ("clip*",)),
            ("|log-ratio| to the old policy", ("log_ratio/mean_abs",)),
            ("Largest |log-ratio|", ("log_ratio/max*",)),
            ("Variance of the log-ratio", ("log_ratio/var",)),
            ("Rollout gap (nats)", ("rollout_gap/mean", "rollout_gap/max")),
            ("Rollout gap, share of tokens", ("rollout_gap/*_frac",)),
            ("Importance weights", ("importance_weight*",)),
        ),
    ),
    (
        "Optimiser and speed",
        (
            ("Learning rate", ("learning_rate", "learning_rate/*")),
            ("Gradient norm", ("grad_norm",)),
            ("Tokens per second", ("*tokens_per_s",)),
            ("Seconds of workers a step", ("time/*_busy_s",)),
            ("Seconds a step", ("time/*",)),
            ("Memory", ("memory*",)),
        ),
    ),
)
_FEW_CHARTS = 6
"""Up to here one heading is enough."""
_NOT_DRAWN = frozenset({"step", "time", "epoch", "rows"})
_ONLY_WHEN_NOT_ZERO = ("dropped_frac", "empty_updates", "skipped_updates")
"""What should not happen is shown where it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelGroup:
    """Charts under one heading."""

    title: str
    charts: Sequence[LineChart]


def not_finite(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Metrics that were logged as null because they were not finite, with the steps."""
    steps: dict[str, list[int]] = {}
    for row in rows:
        for key in (k for k, v in row.items() if v is None or v != v):
            steps.setdefault(key, []).append(row["step"])
    return steps


def panel_groups(rows: Sequence[Row]) -> list[PanelGroup]:
    """The charts of one stage. Keys that no panel names get a chart each under "Other"."""
    columns: dict[str, list[Point]] = {
        key: [(row["step"], value) for row in rows if (value := as_number(row.get(key))) is not None]
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in _NOT_DRAWN
    }
    groups: list[PanelGroup] = []
    for title, panels in _LAYOUT:
        charts = []
        for name, patterns in panels:
            keys = [k for p in patterns for k in columns if fnmatchcase(k, p)]
            series = {key: columns.pop(key) for key in dict.fromkeys(keys)}
            chart = line_chart(name, series)
            if chart is not None:
                charts.append(chart)
        groups.append(PanelGroup(title=title, charts=charts))
    for key in [k for k in _ONLY_WHEN_NOT_ZERO if not any(value for _, value in columns.get(k, []))]:
        columns.pop(key, None)
    others = [chart for key, values in columns.items() if (chart := line_chart(key, {key: values})) is not None]
    groups.append(PanelGroup(title="Other", charts=others))
    groups = [group for group in groups if group.charts]
    if sum(len(group.charts) for group in groups) <= _FEW_CHARTS:
        return [PanelGroup(title="Curves", charts=[c for group in groups for c in group.charts])] if groups else []
    return groups
