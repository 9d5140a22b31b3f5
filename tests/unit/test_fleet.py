"""The fleet file: what it may say, and how clearly a mistake in it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from optiinfra.runtime.engine_file import declared_engines
from optiinfra.runtime.engines import start_first
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.fleet_file import load_fleet
from optiinfra.runtime.wiring import cost_policy
from optiinfra.schemas.errors import Rejected
from optiinfra.serving.engines import VllmConfig
from tests.cost_stand import FakeActuator

LEAST: dict[str, Any] = {
    "clouds": {"aws": {"regions": ["us-east-1"]}},
    "deployments": [{"id": "chat", "model": "m", "provider": "aws"}],
}


def written(folder: Path, content: object) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def deployment(**changes: Any) -> dict[str, Any]:
    return {**LEAST, "deployments": [{**LEAST["deployments"][0], **changes}]}


def local(**changes: Any) -> dict[str, Any]:
    return {
        "clouds": {"local": {"command": ["engine"]}},
        "deployments": [{"id": "chat", "model": "m", "provider": "local", **changes}],
    }


def cluster(changes: dict[str, Any], **of_deployment: Any) -> dict[str, Any]:
    one = {"id": "chat", "model": "m", "provider": "kubernetes", **of_deployment}
    return {"clouds": {"kubernetes": {"namespace": "serving", **changes}}, "deployments": [one]}


def test_the_least_file_observes_and_declares_its_deployments(tmp_path: Path) -> None:
    fleet = load_fleet(written(tmp_path, LEAST))
    assert fleet.mode == "observe"
    declared = fleet.declared("http://127.0.0.1:8080/")["chat"]
    assert declared.acting is False
    assert declared.tenant == "default"


def test_acting_must_be_asked_for(tmp_path: Path) -> None:
    fleet = load_fleet(written(tmp_path, {**LEAST, "mode": "act"}))
    assert fleet.declared("http://127.0.0.1:8080/")["chat"].acting is True


def test_a_golden_set_is_looked_for_beside_the_file(tmp_path: Path) -> None:
    fleet = load_fleet(written(tmp_path, deployment(golden="sets/mine.jsonl")))
    assert fleet.golden == tmp_path / "sets" / "mine.jsonl"
    absolute = load_fleet(written(tmp_path, deployment(golden="/sets/mine.jsonl")))
    assert absolute.golden == Path("/sets/mine.jsonl")


def test_a_kubeconfig_is_looked_for_beside_the_file(tmp_path: Path) -> None:
    named = load_fleet(written(tmp_path, cluster({"kubeconfig": "kube.yaml"}))).clouds.kubernetes
    assert named is not None
    assert named.kubeconfig == tmp_path / "kube.yaml"
    unnamed = load_fleet(written(tmp_path, cluster({}))).clouds.kubernetes
    assert unnamed is not None
    assert unnamed.kubeconfig is None


def test_how_sure_the_quality_gate_has_to_be_is_declared_with_its_margin(tmp_path: Path) -> None:
    own = {"max_relative_drop": 0.03, "alpha": 0.01, "beta": 0.1}
    fleet = load_fleet(written(tmp_path, deployment(quality=own)))
    assert fleet.declared("http://127.0.0.1:8080/")["chat"].quality.model_dump() == own
    least = load_fleet(written(tmp_path, LEAST)).declared("http://127.0.0.1:8080/")["chat"].quality
    assert (least.max_relative_drop, least.alpha, least.beta) == (0.05, 0.05, 0.05)


@pytest.mark.parametrize("key", ["alpha", "beta"])
@pytest.mark.parametrize("value", [0, 1e-9, 0.6, -0.05, "never"])
def test_chances_that_no_test_could_keep_are_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(Rejected, match=rf"quality\.{key}"):
        load_fleet(written(tmp_path, deployment(quality={key: value})))


def test_stages_become_the_rollout_of_a_migration() -> None:
    timing = {"stage_shares": [0.2, 1.0], "stage_soak_s": [3.0, 0.0], "hold_limit_s": 7.0}
    policy = cost_policy(Fleet.model_validate({**LEAST, "timing": timing}))
    assert [(s.share, s.soak_s) for s in policy.migration.stages] == [(0.2, 3.0), (1.0, 0.0)]
    assert {stage.hold_limit_s for stage in policy.migration.stages} == {7.0}


MISTAKES: dict[str, tuple[object, str]] = {
    "no deployments": ({}, "deployments: this key is needed"),
    "an empty list of deployments": ({**LEAST, "deployments": []}, "deployments: "),
    "a misspelt key": ({**LEAST, "mod": "act"}, "mod: there is no such key; did you mean 'mode'?"),
    "a misspelt key inside": (
        deployment(intteruptible=True),
        "deployments.0.intteruptible: there is no such key; did you mean 'interruptible'?",
    ),
    "a key like no other": (
        {**LEAST, "clouds": {"aws": {"regions": ["x"], "zzz": 1}}},
        "clouds.aws.zzz: there is no such key; there are regions, endpoint_url",
    ),
    "a mode that does not exist": ({**LEAST, "mode": "dry"}, "mode: Input should be 'observe'"),
    "a cloud that is not configured": (
        {"deployments": LEAST["deployments"]},
        "deployments.0 (chat).provider is 'aws', but the file has no clouds.aws",
    ),
    "a cloud without an adapter": (
        deployment(provider="gcp"),
        "provider: gcp has no adapter yet; choose one of aws, kubernetes, local",
    ),
    "two regions": (
        {**LEAST, "clouds": {"aws": {"regions": ["a", "b"]}}},
        "clouds.aws.regions: name one region",
    ),
    "a card that does not exist": (
        deployment(perf_card="h100"),
        "deployments.0.perf_card: no card is called 'h100'; choose one of a100-",
    ),
    "a latency of nothing": (
        deployment(slo={"ttft_p95_s": 0}),
        "deployments.0.slo.ttft_p95_s: Input should be greater than 0",
    ),
    "shares and soaks of different number": (
        {**LEAST, "timing": {"stage_shares": [0.5, 1.0]}},
        "timing: stage_shares has 2 stages and stage_soak_s has 3",
    ),
    "shares that fall": (
        {**LEAST, "timing": {"stage_shares": [0.5, 0.4, 1.0]}},
        "timing: stage_shares must rise from above 0 to 1.0",
    ),
    "shares that end early": (
        {**LEAST, "timing": {"stage_shares": [0.1, 0.2, 0.5]}},
        "timing: stage_shares must rise",
    ),
    "a share of nothing": (
        {**LEAST, "timing": {"stage_shares": [0.0, 0.2, 1.0]}},
        "timing: stage_shares must rise",
    ),
    "a negative soak": (
        {**LEAST, "timing": {"stage_soak_s": [1.0, -2.0, 1.0]}},
        "timing: stage_soak_s must not be negative",
    ),
    "lost before the next heartbeat": (
        {**LEAST, "timing": {"heartbeat_s": 60}},
        "timing: lost_after_s (45) must be longer than heartbeat_s (60)",
    ),
    "the same deployment twice": (
        {**LEAST, "deployments": LEAST["deployments"] * 2},
        "deployments ['chat'] are declared twice",
    ),
    "first replicas on a real cloud": (
        deployment(start={"replicas": 2}),
        "deployments.0 (chat).start works on local and kubernetes only",
    ),
    "first pods of which nobody says what they run": (
        cluster({}, start={"replicas": 2}),
        "deployments.0 (chat).start needs engine_file",
    ),
    "two images for one engine": (
        cluster({"images": [{"engine": "vllm", "image": f"vllm:{n}"} for n in (1, 2)]}),
        "clouds.kubernetes.images: name one image for each engine",
    ),
    "fewer first replicas than the least": (
        local(start={"replicas": 1}, min_replicas=2),
        "deployments.0 (chat).start.replicas is below min_replicas",
    ),
    "an engine file that reaches no engine": (
        local(engine_file="engine.yaml"),
        "deployments.0 (chat).engine_file has no effect: put {engine_arguments} into",
    ),
    "two golden sets": (
        {
            **LEAST,
            "deployments": [
                {**LEAST["deployments"][0], "golden": "a"},
                {**LEAST["deployments"][0], "id": "b", "golden": "b"},
            ],
        },
        "more than one golden set",
    ),
    "text": ("just text", "must hold a mapping with the key 'deployments'"),
    "broken YAML": ("a: [", "is not YAML"),
    "a key that stands twice": ("tenant: a\ntenant: b\n", "the key 'tenant' stands twice"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, case: str) -> None:
    content, told = MISTAKES[case]
    with pytest.raises(Rejected) as refused:
        load_fleet(written(tmp_path, content))
    assert told in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.hint


def test_an_engine_file_is_looked_for_beside_the_file_and_must_be_of_the_same_engine(
    tmp_path: Path,
) -> None:
    (tmp_path / "engine.yaml").write_text("engine: vllm\nmodel: m\nmax_num_seqs: 64\n")
    fleet = load_fleet(written(tmp_path, deployment(engine_file="engine.yaml")))
    assert declared_engines(fleet) == {"chat": VllmConfig(model="m", max_num_seqs=64)}
    assert declared_engines(load_fleet(written(tmp_path, LEAST))) == {}
    other = load_fleet(written(tmp_path, deployment(engine_file="engine.yaml", engine="sglang")))
    with pytest.raises(Rejected, match="is of vllm, but chat is served by sglang"):
        declared_engines(other)


async def test_first_replicas_are_started_with_what_is_declared(tmp_path: Path) -> None:
    fleet = load_fleet(written(tmp_path, local(start={"replicas": 1})))
    actuator, engine = FakeActuator(), VllmConfig(model="m", max_num_seqs=64)
    await start_first("acme", fleet.deployments[0], actuator, acting=True, engine=engine)
    assert [spec.engine for spec in actuator.launches] == [engine]


def test_a_mistake_inside_a_list_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as refused:
        load_fleet(written(tmp_path, deployment(slo={"tpot_p95_s": -1})))
    assert refused.value.message.count(": ") == 2


def test_a_file_that_is_not_there_and_one_that_is_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="there is no fleet file"):
        load_fleet(tmp_path / "none.yaml")
    (tmp_path / "fleet.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Rejected, match="cannot be read"):
        load_fleet(tmp_path / "fleet.yaml")
    with pytest.raises(Rejected, match="cannot be read"):
        load_fleet(tmp_path)
