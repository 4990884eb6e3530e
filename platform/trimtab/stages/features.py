"""Stage features: a frozen network's states for every row of a task, once for all seeds, methods and trials."""

from __future__ import annotations

from pathlib import Path

from trimtab.compute import Compute
from trimtab.parts import FeatureSpec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.prepare import ROWS


@stage(version=1, on="workers")
def features(spec: FeatureSpec, out: Path, *, compute: Compute, rows: Path) -> Metrics:
    """One state_D or states_TD a row, or a completion where rows have several; each rank writes its share."""
    from trimtab.data.tables import read_jsonl
    from trimtab.models.features import compute_states, encode, write_states
    from trimtab.models.network import decoder, keep_layers, load_network, load_tokenizer
    from trimtab.models.reward import sequences
    from trimtab.models.source import model_folder
    from trimtab.progress import Meter
    from trimtab.training.world import world

    ranks = world()
    table = read_jsonl(rows / ROWS)
    tokenizer = load_tokenizer(model_folder(spec.model.source, compute.cache, revision=spec.model.revision))
    if "candidates" in table[0]:
        ids, encoded = sequences(tokenizer, table, spec.max_length)
    else:
        ids = [row["id"] for row in table]
        encoded = encode(tokenizer, [row["text"] for row in table], spec.max_length)
    mine = ranks.share(list(range(len(ids))))
    model = load_network(spec.model, compute.cache)
    if spec.without_top:
        keep_layers(model, list(range(len(decoder(model).layers) - spec.without_top)))
    tick = Meter(len(mine)).add
    states = compute_states(model, [encoded[i] for i in mine], spec, batch=compute.inference_batch, tick=tick)
    write_states(out, [ids[i] for i in mine], states, part=ranks.rank)
    return {"rows": len(ids), "tokens": sum(len(row) for row in encoded)}
