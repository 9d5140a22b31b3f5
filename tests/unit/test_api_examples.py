"""The examples in the OpenAPI document are answers that its models allow."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from optiinfra.portal_api.examples import examples
from optiinfra.portal_api.figures.card import CardView
from optiinfra.portal_api.figures.costs import CostsView
from optiinfra.portal_api.figures.forecast import ForecastView
from optiinfra.portal_api.figures.heat import HeatView
from optiinfra.portal_api.figures.lanes import LanesView
from optiinfra.portal_api.figures.overview import OverviewView
from optiinfra.portal_api.figures.performance import PerformanceView
from optiinfra.portal_api.figures.quality import AnswerView, QualityView
from optiinfra.portal_api.figures.resources import ResourcesView
from optiinfra.portal_api.routes.deployment import GateView
from optiinfra.portal_api.routes.figures import OutcomeView
from optiinfra.portal_api.routes.policies import CheckView, PolicyDetail
from optiinfra.portal_api.routes.series import SeriesView
from optiinfra.portal_api.routes.workers import WorkersView

MODELS: dict[str, type[BaseModel]] = {
    "answer": AnswerView,
    "card": CardView,
    "check": CheckView,
    "costs": CostsView,
    "forecast": ForecastView,
    "gate": GateView,
    "lanes": LanesView,
    "outcome": OutcomeView,
    "overview": OverviewView,
    "performance": PerformanceView,
    "policy": PolicyDetail,
    "quality": QualityView,
    "resources": ResourcesView,
    "series": SeriesView,
    "ttft": HeatView,
    "workers": WorkersView,
}


def names(value: Any) -> Any:
    """The keys of an answer, without its values."""
    if isinstance(value, dict):
        return {name: names(part) for name, part in value.items()}
    return [names(part) for part in value] if isinstance(value, list) else None


@pytest.mark.parametrize("name", sorted(MODELS | examples()))
def test_an_example_is_an_answer_of_its_model(name: str) -> None:
    model, example = MODELS[name], examples()[name]
    assert names(model.model_validate(example).model_dump(mode="json")) == names(example)
    assert model.model_json_schema()["examples"] == [example]
