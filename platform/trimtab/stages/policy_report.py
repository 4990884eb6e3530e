"""Stage policy_report: what a preference experiment found, as metrics, one HTML page and one picture."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.compute import Compute
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.generate import SPEED
from trimtab.stages.measure import SAMPLES
from trimtab.stages.pairs import read_scores
from trimtab.stages.report import PAGE, PICTURE, TABLE, Parts, as_written, label_quality, predictions_of, role_of, times
from trimtab.stages.reserve import set_aside

if TYPE_CHECKING:
    from trimtab.metrics import Bootstrap, Interval
    from trimtab.policy_metrics import Means
    from trimtab.stages._policy_page import Estimate, PolicyReport, PolicyResult, Sample

GOLD = {"vader": "VADER's compound score", "reward_model": "a reward model's score", "given": "the given order"}
SHOWN = 6
COUNTED = ("rows_truncated", "rows_dropped", "rows_merged_boundary")


@stage(version=2, on="driver")
def policy_report(spec: Spec, out: Path, *, compute: Compute, parts: Mapping[str, Path]) -> Metrics:
    """Averages over seeds, paired bootstrap intervals over test prompts and seeds; parts are seed/what/name."""
    from trimtab.stages._policy_page import metrics_of, render_page, summary_table
    from trimtab.stages._policy_plots import headline_plot

    data = Collected(spec, Parts(parts)).report()
    (out / PAGE).write_text(render_page(data), encoding="utf-8")
    headline_plot(data, out / PICTURE)
    (out / TABLE).write_text(json.dumps(summary_table(data)))
    return metrics_of(data)


class Collected:
    """Everything measured, by model and seed; what is one round of a policy is kept apart as its path."""

    def __init__(self, spec: Spec, found: Parts) -> None:
        self.spec, self.found = spec, found
        measured = {name: [_samples(folder) for folder in folders] for name, folders in found.of("measure").items()}
        self.rounds = {name: seeds for name, seeds in measured.items() if "@" in name}
        self.measured = {name: seeds for name, seeds in measured.items() if "@" not in name}
        self.ranked = {
            name: [predictions_of(folder) for folder in folders] for name, folders in found.of("score").items()
        }
        self.gold, self.wins, self.kl = (self._means(what) for what in ("gold", "wins", "kl"))
        self.accuracy = self._accuracy()

    def _means(self, what: str) -> Means | None:
        """Means over prompts and seeds with paired intervals, of KL where it is known; None where none is sampled."""
        import numpy as np

        from trimtab.policy_metrics import paired_means

        names = [name for name in self.measured if not (what == "wins" and name == "reference")]
        if what == "kl":
            names = [name for name in names if np.isfinite([seed["kl"] for seed in self.measured[name]]).all()]
        if not names:
            return None
        values = {name: [self._values(what, name, seed) for seed in range(len(self.found.seeds))] for name in names}
        options = self.spec.report
        base = "reference" if what == "gold" else None
        same = len({tuple(seed["ids"]) for seed in self.measured["reference"]}) == 1
        return paired_means(values, options.level, base=base, resamples=options.bootstrap, same_rows=same)

    def _values(self, what: str, name: str, seed: int) -> Any:
        """One number a prompt. Wins: over all pairs of samples, the verdict being that of both orders, ties half."""
        import numpy as np

        from trimtab.policy_metrics import better_in_both_orders, preferred

        mine = self.measured[name][seed]
        if what != "wins":
            return mine[what].mean(1)
        theirs = self.measured["reference"][seed]["gold"]
        difference = mine["gold"][:, :, None] - theirs[:, None, :]
        first, second = (np.heaviside(sign * difference, 0.5) for sign in (1, -1))
        return preferred(better_in_both_orders(first, second)).mean((1, 2))

    def _accuracy(self) -> Bootstrap | None:
        """None where nobody ordered pairs."""
        from trimtab.metrics import paired_bootstrap

        if not self.ranked:
            return None
        correct = {name: [seed["correct"] for seed in seeds] for name, seeds in self.ranked.items()}
        same = len({tuple(seed["ids"]) for seed in self.ranked["supervisor"]}) == 1
        return paired_bootstrap(correct, self.spec.report.level, resamples=self.spec.report.bootstrap, same_rows=same)

    def report(self) -> PolicyReport:
        import yaml

        from trimtab.stages._policy_page import PolicyReport
        from trimtab.versions import commit, versions

        names = list(dict.fromkeys([*self.measured, *self.ranked]))
        rows = self.measured["reference"] if self.measured else self.ranked["supervisor"]
        return PolicyReport(
            title=f"{self.spec.kind}: {self.spec.task.source}",
            job_file=yaml.safe_dump(as_written(self.spec), sort_keys=False),
            versions=versions(),
            commit=commit(),
            created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            models=[self._model(name) for name in sorted(names, key=_rank)],
            best_of_n=self._best_of_n(),
            best_of_n_weak=self._best_of_n("weak"),
            label_quality=label_quality(self.found),
            counts=self._counts(),
            stages=times(self.found),
            notes=self._notes(),
            gold_name=GOLD[self.spec.gold.kind],
            seeds=len(self.found.seeds),
            n_test=min(len(seed["ids"]) for seed in rows),
            level=self.spec.report.level,
        )

    def _notes(self) -> list[str]:
        notes = set_aside(self.spec) + self.found.befell()
        if "supervisor" in self.measured and self.spec.supervisor.kind != "policy":
            who = "the judges'" if self.spec.supervisor.kind == "debate" else "the weak reward model's"
            notes.append(f"supervisor: its gold reward is the weak policy's, its preference accuracy {who}.")
        return notes

    def _model(self, name: str) -> PolicyResult:
        import numpy as np

        from trimtab.stages._policy_page import Estimate, PolicyResult
        from trimtab.training.curves import read_curves

        mine = self.measured.get(name)
        gold = self.gold if mine else None
        return PolicyResult(
            name=name,
            role=role_of(name),
            gold=_estimate(gold.mean[name]) if gold else Estimate(None),
            gain=_estimate(gold.difference[name]) if gold and name != "reference" else None,
            win_rate=_estimate(self.wins.mean[name]) if gold and name != "reference" else None,
            accuracy=_estimate(self.accuracy.accuracy[name]) if name in self.ranked else None,
            kl=_estimate(self.kl.mean[name]) if gold and name in self.kl.mean else None,
            length=float(np.mean([seed["tokens"].mean() for seed in mine])) if mine else None,
            pgr_gold=gold.pgr.get(name) if gold and name != "reference" else None,
            pgr_accuracy=self.accuracy.pgr.get(name) if self.accuracy else None,
            speed=self._speed(name),
            per_seed=[float(seed["gold"].mean()) for seed in mine] if mine else [],
            path=self._path(name),
            curves=[read_curves(folder) for folder in self.found.of("model").get(name, [])],
            samples=self._shown(mine[0]) if mine else [],
        )

    def _speed(self, name: str) -> float | None:
        """Tokens a second while its samples were drawn, where that was measured."""
        from statistics import fmean

        files = [folder / SPEED for folder in self.found.of("samples").get(name, [])]
        told = [json.loads(file.read_text())["tokens_per_second"] for file in files if file.exists()]
        return fmean(told) if told else None

    def _path(self, name: str) -> list[tuple[float, float]]:
        """(KL, gold reward) after each round, or with each lesser strength of a guide; averaged over seeds."""
        import numpy as np

        sweep = [
            key
            for key in self.measured
            if role_of(key) == "guided" and key.rpartition(" ")[0] == name.rpartition(" ")[0]
        ]
        before = [self.measured[key] for key in sweep[: sweep.index(name)]] if name in sweep else []
        rounds = sorted(
            (key for key in self.rounds if key.startswith(f"{name}@")), key=lambda key: int(key.split("@")[1])
        )
        steps = before + [self.rounds[key] for key in rounds] + ([self.measured[name]] if name in self.measured else [])
        return [
            tuple(float(np.mean([seed[what].mean() for seed in step])) for what in ("kl", "gold")) for step in steps
        ]

    def _shown(self, measured: dict[str, Any]) -> list[Sample]:
        from trimtab.stages._policy_page import Sample

        rows = measured["rows"][:SHOWN]
        return [Sample(_text(row["prompt"]), row["completions"][0], row["gold"][0]) for row in rows]

    def _best_of_n(self, by: str = "gold") -> list[tuple[int, float, float]]:
        """(n, KL, gold reward) of the best of n of the reference's completions, chosen by gold or weak scores."""
        import numpy as np

        from trimtab.policy_metrics import best_of_n

        folders, choosers = self.found.of("gold").get("", []), self.found.of(by).get("", [])
        if not (self.measured and folders and choosers) or self.spec.sampling is None:
            return []
        curves = []
        for folder, chooser in zip(folders, choosers, strict=True):
            gold, chosen_by = read_scores(folder), read_scores(chooser)
            curves.append(best_of_n([gold[i] for i in gold], [chosen_by[i] for i in gold]))
        rewards_K = np.mean([curve.reward_K for curve in curves], axis=0)
        return [
            (int(n), float(kl), float(r)) for n, kl, r in zip(curves[0].n_K, curves[0].kl_K, rewards_K, strict=True)
        ]

    def _counts(self) -> list[tuple[str, int]]:
        """What became of rows: read, rejected, sampled, paired, left out, cut and dropped; sums over seeds."""
        found: dict[str, int] = {}
        for record, metrics in self.found.results():
            stage_name = record["stage"]
            named = {
                "prompts": {
                    "prompts": "rows",
                    "prompts rejected": "rejected",
                    "prompts beyond the limit": "beyond_limit",
                },
                "generate": {"completions sampled": "samples", "prompts too long to continue": "dropped_long_prompt"},
                "explore": {"training prompts too long to continue": "dropped_long_prompt"},
                "pair": {"pairs": "rows", "pairs left out (ties, equal texts, small margins)": "left_out"},
                "align": {f"training {name.replace('_', ' ')}": name for name in COUNTED},
            }.get(stage_name, {})
            for label, key in named.items():
                found[label] = found.get(label, 0) + int(metrics.get(key, 0))
        return list(found.items())


def _samples(folder: Path) -> dict[str, Any]:
    import numpy as np

    from trimtab.data.tables import read_jsonl

    rows = sorted(read_jsonl(folder / SAMPLES), key=lambda row: row["id"])
    values = {name: np.array([row[name] for row in rows], dtype=float) for name in ("gold", "kl", "tokens")}
    return {"ids": [row["id"] for row in rows], "rows": rows} | values


def _rank(name: str) -> int:
    return ("reference", "supervisor", "student", "guided", "ceiling").index(role_of(name))


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _estimate(interval: Interval) -> Estimate:
    from trimtab.stages._policy_page import Estimate

    return Estimate(interval.mean, interval.lo, interval.hi)
