"""What the probes see of a file's texts, read once: refits on other golds or fewer questions start from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.layout import FloatArray, IntArray, OptionLayout
from scale_vqa_eval.audit.options_geometry import document_frequency, geometry_of, rarity_from
from scale_vqa_eval.audit.wording import BLOCKS, Presence, chunks, grams, presence_of
from scale_vqa_eval.questions import Question

WORDING_FAMILIES = tuple(BLOCKS)


@dataclass(frozen=True)
class Prepared:
    """The texts of some questions as numbers; no gold answer is in it.

    Attributes:
        layout: where each question's options stand.
        types: (n,) number of each question's dimension; -1 for all where the file has less than two.
        geometry: (N, f) options geometry, in single precision.
        wording: family -> which columns each option has.
    """

    layout: OptionLayout
    types: IntArray
    geometry: npt.NDArray[np.float32]
    wording: dict[str, Presence]

    def take(self, chosen: IntArray) -> Prepared:
        """Returns the same of chosen questions."""
        rows = self.layout.rows_of(chosen)
        wording = {family: presence.take(rows) for family, presence in self.wording.items()}
        return Prepared(self.layout.take(chosen), self.types[chosen], self.geometry[rows], wording)


@dataclass(frozen=True)
class Reader:
    """Turns questions into ``Prepared``, the same way for a sample and for what is streamed later.

    Attributes:
        rarity: (2**20,) weight of each hashed token.
        types: dimension -> number; empty where the file has less than two.
        families: the wording families that are wanted.
    """

    rarity: FloatArray
    types: dict[str, int]
    families: tuple[str, ...]

    @classmethod
    def fit(cls, questions: Sequence[Question], families: Sequence[str] = WORDING_FAMILIES) -> Reader:
        """Counts tokens and dimensions of a sample of questions."""
        frequency = document_frequency(questions, list(chunks(questions)))
        names = sorted({question.dimension for question in questions if question.dimension is not None})
        options = sum(len(question.options) for question in questions)
        types = {name: number for number, name in enumerate(names)} if len(names) > 1 else {}
        return cls(rarity_from(frequency, options), types, tuple(families))

    def read(self, questions: Sequence[Question]) -> Prepared:
        """Reads questions, a chunk at a time."""
        parts = [self._chunk([questions[row] for row in part]) for part in chunks(questions)]
        if len(parts) == 1:
            return parts[0]
        return Prepared(
            OptionLayout.of(np.concatenate([part.layout.counts for part in parts])),
            np.concatenate([part.types for part in parts]),
            np.concatenate([part.geometry for part in parts]),
            {family: Presence.stack([part.wording[family] for part in parts]) for family in self.families},
        )

    def _chunk(self, questions: Sequence[Question]) -> Prepared:
        layout = OptionLayout.of_questions(questions)
        texts = [text for question in questions for text in question.options]
        made = {kind: grams(texts, kind) for kind in ("words", "phrases", "characters")}
        types = np.array([self.types.get(question.dimension or "", -1) for question in questions], dtype=np.int64)
        geometry = geometry_of(questions, layout, made, self.rarity).astype(np.float32)
        wording = {family: presence_of(family, made, layout, types) for family in self.families}
        return Prepared(layout, types, geometry, wording)
