"""The commands ``export``, ``chat`` and ``serving``, for clients' personal adapters."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines.cli.read import NameOption
from perfit_pipelines.cli.stores import StoreOption, use_store
from perfit_pipelines.options import INTERRUPTED, errors, out
from perfit_pipelines.writing import write_file

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

ClientArgument = Annotated[str, typer.Argument(help="Id of the client.", show_default=False)]
_NEW = "/new"


class Server(StrEnum):
    """What ``perfit serving`` writes."""

    VLLM = "vllm"
    KSERVE = "kserve"
    POLICY = "policy"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(export)
    app.command()(chat)
    app.command()(serving)


def export(
    client: ClientArgument,
    directory: Annotated[Path, typer.Argument(help="Directory to write.", show_default=False)],
    merged: Annotated[bool, typer.Option("--merged", help="Write the base model with the adapter in it.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Hub id or path of the base model that the adapter names; else this machine's.")
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write PEFT's two files as they are stored; needs no base model.")
    ] = False,
    federation: NameOption = None,
    store: StoreOption = None,
) -> None:
    """Write a client's personal adapter as a directory that PEFT loads, with its tokenizer and a model card."""
    from perfit_pipelines.cli.results import committed
    from perfit_pipelines.export import Exporter
    from perfit_report import last_records

    if adapter_only and (merged or base):
        raise PerfitError(
            "--adapter-only writes the files as they are stored", "leave out --adapter-only, or --merged and --base"
        )
    with use_store(store, existing=True) as used:
        context = used.federation(federation)
        exporter = Exporter(context, base)
        write = exporter.write_merged if merged else exporter.write_adapter
        (exporter.write_as_stored if adapter_only else write)(client, directory)
        head = context.store.read_head()
        record = last_records(context.summaries()).get(client) if head.branches else None
    call = "AutoModelForCausalLM.from_pretrained(" if merged else "PeftModel.from_pretrained(base_model, "
    card = "" if adapter_only else f"; {directory}/README.md shows how"
    out.print(f"wrote {directory}; load it with {call}{str(directory)!r}){card}", markup=False)
    if head.branches and (record is None or record.round < head.branches[-1].first_round):
        out.print(f"{committed(head)}; the adapter may be of a round that no longer counts", markup=False)


def chat(
    client: ClientArgument,
    prompt: Annotated[str | None, typer.Argument(help="What to ask; else a conversation, or what is piped in.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="Of the sampling; 0: always the likeliest token.")] = 0.0,
    without_adapter: Annotated[
        bool, typer.Option("--without-adapter", help="Ask the base model alone, to compare.")
    ] = False,
    federation: NameOption = None,
    store: StoreOption = None,
) -> None:
    """Talk to the model of a client: the base model with its personal adapter.

    Piped input is one question, and only the answer is printed. In a terminal, /new starts a new conversation and
    Ctrl-D ends it.
    """
    from perfit.conversation import set_quiet
    from perfit_pipelines.export import Exporter

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise PerfitError(
                "there is nothing on the standard input", f"pipe in a question: echo Hi | perfit chat {client}"
            )
    set_quiet()
    with use_store(store, existing=True) as used:
        exporter = Exporter(used.federation(federation))
        exporter.weights(client)  # so that a wrong name is said before the model is loaded
        with exporter.load(None if without_adapter else client) as model:
            conversation = _Conversation(model, exporter.tokenizer, system, max_tokens, temperature)
            try:
                _talk(conversation, client, prompt)
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None


def serving(
    server: Annotated[
        Server,
        typer.Argument(help="A script for vLLM, objects for KServe, or the policy of its key.", show_default=False),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; else the terminal.")] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model: for vLLM a hub id or path, for KServe a URI such as s3://...")
    ] = None,
    directory: Annotated[str, typer.Option(help="Where vLLM's script exports the adapters to.")] = "adapters",
    federation: NameOption = None,
    store: StoreOption = None,
) -> None:
    """Write what serves the personal adapters of all clients of a federation from one server.

    Its key reads every owner's adapter, and whoever may ask it may ask for each of them.
    """
    from perfit.base_model import base_model
    from perfit_components.steps.context import model_cache
    from perfit_pipelines.deploy.policies import serving_policy
    from perfit_pipelines.serving import Adapters, kserve_base

    with use_store(store, existing=True) as used:
        context = used.federation(federation)
        if server is Server.POLICY:
            text = json.dumps(serving_policy(context.spec, used.uri), indent=2) + "\n"
        else:
            adapters, manifest = Adapters.find(context), context.model()
            if adapters.without:
                errors.print(f"left out, without an adapter: {', '.join(adapters.without)}", markup=False)
            if server is Server.KSERVE:
                text = adapters.kserve_objects(base or kserve_base(manifest))
            else:
                found = None if base else base_model(manifest, model_cache())
                text = adapters.vllm_script(base or found.name, found and found.revision, directory, store)
    if output is None:
        print(text, end="")
    else:
        write_file(output, text.encode())
        out.print(f"wrote {output}", markup=False)


def _talk(conversation: _Conversation, client: str, prompt: str | None) -> None:
    if prompt is not None:
        return conversation.ask(prompt)
    import readline  # noqa: F401 - gives input() a history

    errors.print(f"you talk to {client}'s model; {_NEW} starts a new conversation, Ctrl-D ends it", markup=False)
    for line in _lines():
        if line == _NEW:
            conversation.start_again()
            continue
        try:
            conversation.ask(line)
        except KeyboardInterrupt:  # of this answer
            print()
        except PerfitError as error:
            errors.print(f"{error.problem}; {_NEW} starts a new conversation", markup=False)
    return None


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line:
            yield line


class _Conversation:
    """What was said so far, and who answers."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None,
        max_tokens: int,
        temperature: float,
    ):
        from transformers import TextStreamer

        self._model, self._tokenizer, self._max_tokens, self._temperature = model, tokenizer, max_tokens, temperature
        self._first = [{"role": "system", "content": system}] if system else []
        self._streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.start_again()

    def start_again(self) -> None:
        """Forget all but the system message."""
        self._messages = list(self._first)

    def ask(self, question: str) -> None:
        """Print the answer to a question while it is generated; one that is interrupted or fails is forgotten."""
        from perfit.conversation import answer

        asked = [*self._messages, {"role": "user", "content": question}]
        text = answer(self._model, self._tokenizer, asked, self._max_tokens, self._temperature, self._streamer)
        self._messages = [*asked, {"role": "assistant", "content": text}]
