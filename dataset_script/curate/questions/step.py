"""Step 2 on one shard: the features of its paths in, drafts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dataset_script.curate.asking.role import Role, outcomes, with_format
from dataset_script.curate.asking.settings import RoleSettings
from dataset_script.curate.features.captions import CaptionedPath
from dataset_script.curate.features.decompose import Feature
from dataset_script.curate.questions.drafts import Order, Pair, reply_schema, write_drafts
from dataset_script.curate.questions.plan import PathPlan
from dataset_script.curate.work import WorkFolder, write_lines
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.llm import Spending
from scale_vqa_eval.schema import row_id


@dataclass(frozen=True)
class DraftTask:
    """One shard to be asked about.

    Attributes:
        work: the work folder.
        shard: number of the shard.
        role: the endpoint of ``generate``.
        tries: how often a reply that cannot be used is asked for again.
        forms: path key -> question type -> template or ``free``.
        pairs: row id -> the two features that the question is to join, of questions that are to form exchange sets.
        progress: show a bar on standard error.
    """

    work: WorkFolder
    shard: int
    role: RoleSettings
    tries: int
    forms: Mapping[str, Mapping[str, str]]
    pairs: Mapping[str, Pair]
    progress: bool = True


def orders_of(
    path: CaptionedPath, features: Mapping[str, Any], forms: Mapping[str, str], pairs: Mapping[str, Pair]
) -> list[Order]:
    """Returns what is wanted of a path: a question a type; nothing of one whose decomposition was lost."""
    if features["lost"]:
        return []
    found = tuple(Feature(**one) for one in features["features"])
    rows = {question_type: row_id(path.slide, path.path_id, question_type) for question_type in forms}
    return [
        Order(row, path, found, question_type, forms[question_type], pair=pairs.get(row))
        for question_type, row in rows.items()
    ]


def shard_orders(
    work: WorkFolder, shard: int, forms: Mapping[str, Mapping[str, str]], pairs: Mapping[str, Pair]
) -> list[Order]:
    """Returns every order of a shard.

    Raises:
        InputError: where a path has not been decomposed.
    """
    features = {row["path"]: row for row in work.part_rows("features", shard)}
    paths = work.paths(shard)
    missing = next((path.key for path in paths if path.key not in features), None)
    if missing is not None:
        found = "none: the captions have changed since"
        raise InputError(Problem(f"path {missing}", "features of the decompose step", found, "run --step decompose"))
    return [order for path in paths for order in orders_of(path, features[path.key], forms[path.key], pairs)]


def draft_shard(task: DraftTask) -> dict[str, Any]:
    """Writes ``drafts/<shard>.jsonl`` and returns its account."""
    settings = with_format(task.role, "question", reply_schema())
    role = Role(settings, task.work.answers("generate", task.shard), task.progress, Spending())
    orders = shard_orders(task.work, task.shard, task.forms, task.pairs)
    results = write_drafts(orders, role, task.tries)
    write_lines(task.work.part("drafts", task.shard), (one.value.as_row() for one in results if one.value is not None))
    return {
        "asked": len(orders),
        "drafts": sum(one.value is not None for one in results),
        "outcomes": outcomes(results),
        "lost": [[one.label, *one.failed[-1]] for one in results if one.value is None],
        "spent": asdict(role.spent),
    }


def forms_of(plans: Mapping[str, PathPlan]) -> dict[str, Mapping[str, str]]:
    """Returns path key -> question type -> form."""
    return {key: plan.forms for key, plan in plans.items()}
