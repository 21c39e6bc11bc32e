"""What a run looks like: a self-contained HTML page, a table for the terminal, and the recorder of trajectories."""

from posttrain.report.page import write_report
from posttrain.report.recorded_row import TokenStreams
from posttrain.report.recording import TrajectoryRecorder
from posttrain.report.terminal import stage_table

__all__ = ["TokenStreams", "TrajectoryRecorder", "stage_table", "write_report"]
