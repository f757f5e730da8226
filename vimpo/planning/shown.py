"""What `check` shows of a model and its data: one prompt, the ends of responses, and warnings."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vimpo.config import Study, TextTask
from vimpo.tasks.prompts import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vimpo.tasks.dataset import DatasetProblems
    from vimpo.tasks.gym.problems import GymProblems


def ends_line(size: str, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> str:
    """The tokens that end a response, by text and number."""
    named = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ends)
    return f"{size}: responses end at {named}"


def show_prompt(
    size: str,
    task: DatasetProblems | GymProblems,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None],
) -> None:
    """Say the first prompt as the model reads it: decoded from its tokens."""
    (problem,) = task.training_problems(0, 0, 1)
    (ids,) = encode(tokenizer, [problem.prompt])
    say(f"{size}: a prompt of {len(ids)} tokens:")
    for line in str(tokenizer.decode(ids)).split("\n"):
        say(f"  | {line}")


def prompt_warnings(
    study: Study,
    size: str,
    task: DatasetProblems | GymProblems,
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
) -> Iterator[str]:
    """What may be meant, but would go wrong without a word if it is not."""
    from vimpo.evaluation.benchmarks import benchmark_task

    (problem,) = task.training_problems(0, 0, 1)
    if unwritten(tokenizer, problem.prompt, problem.text):
        lost = f"the tokenizer cannot write all of a problem ({problem.text!r:.80})"
        yield f"sizes.{size}.path: {lost}"
    is_chat = isinstance(study.task, TextTask) and study.task.chat_template
    if is_chat and (end := turn_end(tokenizer)) is not None and end not in ends:
        token = f"{tokenizer.convert_ids_to_tokens(end)} ({end})"
        yield (
            f"sizes.{size}.path: the chat template ends a turn with {token}, which ends no "
            "response; if it should, name it in eos_token_id of the model's generation_config.json"
        )
    asked = {}
    for name in study.task.benchmarks:
        benchmark = benchmark_task(study, name, tokenizer)
        asked[name] = [benchmark.describe(row)[0] for row in benchmark.rows()]
    for name, shared in shared_problems(task.texts(), asked).items():
        yield (
            f"task.benchmarks.{name}: {len(shared)} of its {len(asked[name])} problems are also "
            f"training problems, such as {shared[0]!r:.100}"
        )


def unwritten(tokenizer: PreTrainedTokenizerBase, prompt: str, problem: str) -> bool:
    """Do letters or digits of the problem get lost between the prompt and its tokens?"""
    (ids,) = encode(tokenizer, [prompt])
    return _letters(problem) not in _letters(str(tokenizer.decode(ids)))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that follows an answer in the chat template; None if there is none."""
    answer = "seven"
    turns: list[Any] = [
        {"role": "user", "content": "What is 3 plus 4?"},
        {"role": "assistant", "content": answer},
    ]
    try:
        chat = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template for other contents; prompts have been rendered without fault
        return None
    _, found, rest = chat.rpartition(answer)
    special = set(tokenizer.all_special_ids)
    special.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if found else []
    return next((i for i in ids if i in special), None)


def shared_problems(
    training: Iterable[str], benchmarks: Mapping[str, Iterable[str]]
) -> dict[str, list[str]]:
    """Benchmarks that share problems with training, and these problems; spaces and case aside."""
    trained = set(map(_plain, training))
    found = {
        name: [problem for problem in problems if _plain(problem) in trained]
        for name, problems in benchmarks.items()
    }
    return {name: shared for name, shared in found.items() if shared}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
