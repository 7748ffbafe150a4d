"""Pages of experiments as clients ask for them."""

from __future__ import annotations

from dlmesh.tuning.v1 import tuning_pb2
from servicekit.errors import invalid

from tuning_service.domain.study import TrialStatus
from tuning_service.usecases.ports import TrialPage
from tuning_service.usecases.studies import PAGE_TRIALS

_SORTS = {"": "", "id": "", "-id": "newest", "metricval": "best"}


def page_of(request: tuning_pb2.ListExperimentsRequest | tuning_pb2.ListTuningExperimentsRequest) -> TrialPage:
    """The page that is asked for; 400 for an order or a state that there is not."""
    sort = _SORTS.get(request.sort.lower())
    if sort is None:
        raise invalid("sort", request.sort, ("id", "-id", "metricVal"))
    words = [str(status) for status in TrialStatus]
    if request.state and request.state.upper() not in words:
        raise invalid("state", request.state, words)
    statuses = [TrialStatus(request.state.upper())] if request.state else []
    return TrialPage(request.start, request.length or PAGE_TRIALS, statuses, sort == "best", sort == "newest")
