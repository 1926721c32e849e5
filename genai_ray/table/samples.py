"""Rows of a table by index: what is fixed, what is drawn, and what is drawn again.

A condition fixes some columns. The model is conditioned on those that it supports; the others, and the constraints of
the table, are met by rejection: attempt a at row i has randomness of its own, a function of (seed, i, a), and the first
attempt that fits is the row.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError
from genai_ray.modality import Codec, Outputs, ShardOf
from genai_ray.onnx_session import Sampler
from genai_ray.provenance import ModelCard
from genai_ray.quotas import Quotas, shares_as_counts
from genai_ray.spec import GenerateSpec
from genai_ray.table.codec import TableCodec, file_spelling
from genai_ray.table.sinks import TableRows
from genai_ray.table.spec import BATCH, RowCondition, TableGenerateSpec

#: Attempts at a row before its shard fails; part of the format, as it spaces the randomness.
MAX_ATTEMPTS = 4096
_FIRST_BLOCK = 8  # attempts at a row in one batch, four times as many in each next one
_AT_ONCE = 65_536  # attempts at all rows in one batch
_PROBED = 512  # trial rows of a condition in one batch, before anything is written
_ENOUGH = 64  # trial rows that fit, to know how often
_FAILED = 0.01  # expected number of rows without a fitting attempt, at most
_FIELD = "generate.conditions"
_SPAN = 1e-4  # of the range of a column: a smaller difference counts as none


class TableSamples:
    """See `Samples`.

    Raises:
        UserError: for a condition on a column or a category that the model does not know, counts
            that do not add up, or more rows than there are ids.
    """

    def __init__(self, model: bytes, card: ModelCard, spec: GenerateSpec, seed: int, conditions: bytes | None):
        assert isinstance(spec, TableGenerateSpec)
        self.card, self.spec, self.seed = card, spec, seed
        self.codec = TableCodec.from_json(card.codec)
        self.codec.check(spec)
        self._model = model
        self._seed_again = rng.fold(seed, rng.Stream.SAMPLE_RETRY)
        self.conditions = spec.conditions or (RowCondition(share=1.0),)
        self._counts = _counts(self.conditions, spec.samples)
        self._quotas = Quotas(self._counts, seed)
        self._requested = np.stack([self._label(c.where) for c in self.conditions])

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self._model, self.card, self.spec, self.seed, BATCH)

    @property
    def _spells(self) -> bool:
        """Whether CSV is written as the source was."""
        return self.spec.sink == "csv" and self.spec.spelling == "source"

    @property
    def schema(self) -> pa.Schema:
        return self.codec.schema

    def counts(self) -> dict[str, int]:
        if len(self.conditions) == 1 and not self.conditions[0].where:
            return {}
        return {_name(c) or "anything": n for c, n in zip(self.conditions, self._counts, strict=True)}

    def probe(self) -> None:
        for number, condition in enumerate(self.conditions):
            if not self._counts[number] or not (condition.where or self.codec.rules):
                continue
            which, ids, hits, tried = np.full(_PROBED, number), np.zeros(_PROBED, np.int64), 0, 0
            while hits < _ENOUGH and tried < MAX_ATTEMPTS:
                table = self._attempt(which, ids, *self._draws(tried, tried + _PROBED))
                hits, tried = hits + int(self._fits(table, which).sum()), tried + _PROBED
            failed = self._counts[number] * (1 - hits / tried) ** MAX_ATTEMPTS
            if failed > _FAILED:
                raise UserError(
                    _FIELD if condition.where else "data.table.constraints",
                    _name(condition),
                    f"is met by {hits} of {tried} trial rows, so that about {failed:,.0f} rows "
                    f"would find none in {MAX_ATTEMPTS} attempts",
                    "Fix fewer columns at once, or train a model that is conditioned on them (`genai-ray presets`).",
                )

    def rows(self, shard: ShardOf) -> TableRows:
        table, attempts = self.table(shard.start, shard.stop)
        return TableRows(
            index=shard.index,
            start=shard.start,
            table=table,
            provenance=shard.provenance,
            producer=shard.producer,
            attempts=attempts,
            spelling=file_spelling(self.codec) if self._spells else None,
        )

    def table(self, start: int, stop: int) -> tuple[pa.Table, int]:
        """Rows start..stop, and how many attempts they took together.

        Raises:
            ValueError: if a row fits in none of MAX_ATTEMPTS attempts.
        """
        which = self._quotas.classes(start, stop)
        table = self._attempt(which, np.arange(start, stop), *self._draws(start, stop))
        pending = np.flatnonzero(~self._fits(table, which))
        attempts, tried, block = stop - start, 1, _FIRST_BLOCK
        chosen, extra = np.arange(stop - start), [table]
        while len(pending):
            block = min(block, MAX_ATTEMPTS - tried)
            if block == 0:
                row = start + int(pending[0])
                raise ValueError(
                    f"row {row}: none of {MAX_ATTEMPTS} attempts fits "
                    f"{_name(self.conditions[which[pending[0]]]) or 'the constraints'}"
                )
            left = []
            for rows in np.array_split(pending, -(-len(pending) * block // _AT_ONCE)):
                accepted, first = self._again(which[rows], start + rows, tried, block)
                attempts += int(np.where(first < 0, block, first + 1).sum())
                at = sum(t.num_rows for t in extra)
                chosen[rows[first >= 0]] = at + np.arange(accepted.num_rows)
                extra.append(accepted)
                left.append(rows[first < 0])
            pending, tried, block = np.concatenate(left), tried + block, 4 * block
        if len(extra) > 1:
            table = pa.concat_tables(extra).take(pa.array(chosen)).combine_chunks()
        return table, attempts

    def _again(
        self, which: NDArray[np.int64], ids: NDArray[np.int64], tried: int, block: int
    ) -> tuple[pa.Table, NDArray[np.int64]]:
        """Attempts tried..tried+block at each row: those that fit, one for each row that has one, and which attempt it
        is, -1 for none.
        """
        draws = [
            self._draws(i * MAX_ATTEMPTS + tried, i * MAX_ATTEMPTS + tried + block, again=True) for i in ids.tolist()
        ]
        noise, uniforms = (np.concatenate(d) for d in zip(*draws, strict=True))
        which, ids = which.repeat(block), ids.repeat(block)
        table = self._attempt(which, ids, noise, uniforms)
        fits = self._fits(table, which).reshape(-1, block)
        first = np.where(fits.any(1), fits.argmax(1), -1)
        taken = np.flatnonzero(first >= 0) * block + first[first >= 0]
        return table.take(pa.array(taken)), first

    def _draws(self, start: int, stop: int, *, again: bool = False) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Noise (N, latent) and two uniforms (N, 2) of attempts start..stop."""
        count = stop - start
        stream, choice = rng.Stream.SAMPLE_NOISE, rng.Stream.SAMPLE_CONDITION
        seed = self._seed_again if again else self.seed
        noise = rng.normal(seed, stream, start, count, self.card.latent)
        uniforms: Any = rng.bits(seed, choice, start, count, 2) * 2.0**-64
        return noise, uniforms

    def _attempt(
        self,
        which: NDArray[np.int64],
        ids: NDArray[np.int64],
        noise: NDArray[np.float32],
        uniforms: NDArray[np.float64],
    ) -> pa.Table:
        labels = self._labels(which, uniforms) if self.card.conditional else None
        codes, values = self.sampler.run(noise, labels)
        return self.codec.decode(codes, values, ids, self.seed)

    def _fits(self, table: pa.Table, which: NDArray[np.int64]) -> NDArray[np.bool_]:
        fits = self.codec.valid(table, unique=False)
        for number, condition in enumerate(self.conditions):
            if condition.where:
                mine = which == number
                fits &= ~mine | self.codec.matches(table, condition.where)
        return fits

    # --- what the model is conditioned on --------------------------------------------------------

    def _label(self, where: Mapping[str, Any]) -> NDArray[np.int64]:
        """Codes that the model is conditioned on (parts,), -1 where it is free."""
        label = np.full(len(self.codec.parts), -1)
        codes = self.codec.requested_codes(where, _FIELD)
        if self.card.given == "one":
            # It takes one category; the rarest spares the most attempts.
            parts = self.codec.parts
            codes = {p: c for p, c in codes.items() if parts[p].discrete}
            codes = dict(sorted(codes.items(), key=lambda x: parts[x[0]].shares[x[1]])[:1])
        for part, code in codes.items():
            label[part] = code
        return label

    def _labels(self, which: NDArray[np.int64], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Labels (N, parts). A model that is always conditioned on one category gets one of a random column, as often
        as in the real data, where the condition fixes none.
        """
        labels = self._requested[which]
        if self.card.given == "one":
            free = np.flatnonzero((labels < 0).all(1))
            labels[free] = self.codec.draw_labels(uniforms[free])
        return labels


def _counts(conditions: tuple[RowCondition, ...], samples: int) -> list[int]:
    """Rows of each condition; they sum to `samples`."""
    rows = [c.rows for c in conditions if c.rows is not None]
    if len(rows) not in (0, len(conditions)):
        raise UserError(
            _FIELD, [_name(c) for c in conditions], "are given by rows and by shares", "Use one of the two for all."
        )
    if rows and sum(rows) != samples:
        raise UserError(
            _FIELD,
            rows,
            f"add up to {sum(rows)}; counts must give generate.samples={samples}",
            "Correct the numbers; {where: {}, rows: …} takes the rest.",
        )
    return rows or shares_as_counts(_FIELD, [c.share or 0.0 for c in conditions], samples)


def _name(condition: RowCondition) -> str:
    return ", ".join(f"{k}={v}" for k, v in condition.where.items())


def cell_difference(outputs: Outputs, expected: Outputs, codec: Codec) -> NDArray[np.float64]:
    """Of the cells of two runs of a graph: 1 for another category, the share of the range for another number, 0 for one
    within _SPAN of it. Cells of a row behind the first other one are left out: a model that draws them given it draws
    others.
    """
    assert isinstance(codec, TableCodec)
    span = np.array([max(p.high - p.low, 1e-12) for p in codec.numeric])
    absent = np.isnan(outputs[1])
    other = absent != np.isnan(expected[1])
    far = np.abs(np.where(absent, 0, outputs[1]) - np.where(absent, 0, expected[1])) / span
    far = np.where(other, 1.0, np.where(absent | (far < _SPAN), 0.0, far))
    order = np.argsort([not part.discrete for part in codec.parts], kind="stable")
    cells = np.empty((len(far), len(order)))
    cells[:, order] = np.concatenate([(outputs[0] != expected[0]) * 1.0, far], 1)
    before = np.cumsum(cells > 0, 1) - (cells > 0)
    return cells[before == 0]
