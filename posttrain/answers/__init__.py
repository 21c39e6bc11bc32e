"""Data sets of a teacher's answers: asked once, filtered by rewards, kept with a manifest of what made them."""

from posttrain.answers.collect import Collected, collect
from posttrain.answers.filtering import Fate, faults, filter_answers
from posttrain.answers.playing import SolverAnswers
from posttrain.answers.settings import CollectSettings
from posttrain.answers.solvers import Solver, ZoomSolver, make_solver
from posttrain.answers.source import AnswerSource, EngineAnswers
from posttrain.answers.tally import Tally, tally_table
from posttrain.teachers.answer import Answer

__all__ = [
    "Answer",
    "AnswerSource",
    "CollectSettings",
    "Collected",
    "EngineAnswers",
    "Fate",
    "Solver",
    "SolverAnswers",
    "Tally",
    "ZoomSolver",
    "collect",
    "faults",
    "filter_answers",
    "make_solver",
    "tally_table",
]
