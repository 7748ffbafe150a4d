"""Problems, trials and answers in the JSON that services and the processes that think tell each other.

Numbers come out as they went in, whole ones whole and others to the last bit; infinite ones are written as Python does.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tuning_service.domain.evaluation import Answer, Evaluation, Known, Problem, Suggestion, TrialState
from tuning_service.domain.space import Choice, Continuous, DataType, Dimension, Fixed, Levels, Space, Steps

Form = dict[str, Any]


def problem_form(problem: Problem) -> Form:
    """A problem as JSON can hold it."""
    known = [[list(one.place), list(one.losses)] for one in problem.known]
    return {
        **vars(problem),
        "settings": dict(problem.settings),
        "space": space_form(problem.space),
        "known": known,
    }


def read_problem(form: Mapping[str, Any]) -> Problem:
    """What `problem_form` wrote."""
    known = tuple(Known(tuple(place), tuple(losses)) for place, losses in form["known"])
    return Problem(**{**form, "space": read_space_form(form["space"]), "known": known})


def space_form(space: Space) -> Form:
    """A space as JSON can hold it."""
    fixed = [
        {"name": one.name, "type": one.data_type, "value": one.value, "user_defined": one.user_defined}
        for one in space.fixed
    ]
    return {"dimensions": [_dimension_form(dimension) for dimension in space.dimensions], "fixed": fixed}


def read_space_form(form: Mapping[str, Any]) -> Space:
    """What `space_form` wrote."""
    fixed = [Fixed(one["name"], DataType(one["type"]), one["value"], one["user_defined"]) for one in form["fixed"]]
    return Space(tuple(_read_dimension(dimension) for dimension in form["dimensions"]), tuple(fixed))


def evaluation_form(trial: Evaluation) -> list[Any]:
    """A trial: number, place, state, losses and notes. Values are for algorithms that are asked otherwise."""
    losses = None if trial.losses is None else list(trial.losses)
    return [trial.number, list(trial.place), trial.state, losses, dict(trial.notes)]


def read_evaluation(form: list[Any]) -> Evaluation:
    """What `evaluation_form` wrote."""
    number, place, state, losses, notes = form
    return Evaluation(number, tuple(place), TrialState(state), None if losses is None else tuple(losses), notes)


def answer_form(answer: Answer) -> Form:
    """An answer as JSON can hold it."""
    return {
        "suggestions": [[list(one.place), dict(one.notes)] for one in answer.suggestions],
        "exhausted": answer.is_exhausted,
    }


def read_answer(form: Mapping[str, Any]) -> Answer:
    """What `answer_form` wrote."""
    suggestions = [Suggestion(tuple(place), notes) for place, notes in form["suggestions"]]
    return Answer(suggestions, is_exhausted=form["exhausted"])


def _dimension_form(dimension: Dimension) -> Form:
    match dimension:
        case Continuous(name, low, high, base):
            return {"kind": "continuous", "name": name, "low": low, "high": high, "base": base}
        case Levels(name, data_type, Steps() as steps):
            exact = None if steps.base is None else str(steps.base)
            form = {"low": str(steps.low), "step": str(steps.step), "size": steps.size, "base": exact}
            return {"kind": "steps", "name": name, "type": data_type, **form}
        case Levels(name, data_type, values):
            return {"kind": "levels", "name": name, "type": data_type, "values": list(values)}
        case Choice(name, data_type, values):
            return {"kind": "choice", "name": name, "type": data_type, "values": list(values)}
    raise TypeError(f"{type(dimension).__name__} has no form")


def _read_dimension(form: Mapping[str, Any]) -> Dimension:
    kind, name = form["kind"], form["name"]
    if kind == "continuous":
        return Continuous(name, form["low"], form["high"], form["base"])
    data_type = DataType(form["type"])
    if kind == "steps":
        exact = None if form["base"] is None else Decimal(form["base"])
        steps = Steps(Decimal(form["low"]), Decimal(form["step"]), form["size"], data_type, exact)
        return Levels(name, data_type, steps)
    values = tuple(form["values"])
    return Levels(name, data_type, values) if kind == "levels" else Choice(name, data_type, values)
