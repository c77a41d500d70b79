"""The command line. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import enum
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="tutelage",
    help="Train agents from people: demonstrations, an expert who answers, comparisons, praise.",
    epilog="An error is one line; with `TUTELAGE_DEBUG=1` in the environment its traceback comes before it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tutelage import __version__

        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print it and end.")
    ] = False,
) -> None:
    pass


oracle_app = typer.Typer(help="Experts as services.", no_args_is_help=True)
app.add_typer(oracle_app, name="oracle")
labeler_app = typer.Typer(help="Questions to people and machines, and their answers.", no_args_is_help=True)
app.add_typer(labeler_app, name="labeler")
reward_app = typer.Typer(help="Rewards that were learnt from comparisons.", no_args_is_help=True)
app.add_typer(reward_app, name="reward")


class LogFormat(enum.Enum):
    text = "text"
    json = "json"


class Video(enum.Enum):
    mp4 = "mp4"
    webm = "webm"


class Switch(enum.Enum):
    on = "on"
    off = "off"


class RoleName(enum.Enum):
    annotator = "annotator"
    operator = "operator"
    trainer = "trainer"


ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A preset's name (`tutelage presets`) or a YAML file.")
]
OracleArgument = Annotated[
    str,
    typer.Argument(
        metavar="ORACLE",
        help="`scripted:NAME`, `checkpoint:PATH`, `sb3:FILE`, `rllib:PATH`, `torchscript:FILE`, `onnx:FILE`, "
        "`planner:cem`, `noisy:ORACLE`, `slow:ORACLE`, `watching:ORACLE`, `human`, `grpc://HOST:PORT`, "
        "`module:attr` or `file.py:attr`: see `docs/experts.md`.",
    ),
]
OracleArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="The expert's own arguments, e.g. `std=0.1`."),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes, e.g. `env_runners.num_env_runners=4`."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, e.g. `runs/NAME`.")]
AddressArgument = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Of the service.")]
ClientArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="How to connect, e.g. `ca=ca.pem token_file=token`."),
]
LabelerFolder = Annotated[
    Path | None, typer.Option(help="Where its questions and answers are kept; default `labeler`.")
]
LabelerRun = Annotated[
    Path | None, typer.Option(help="The run that asks: the labeler is kept in its folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The last line of stdout is the result as JSON.")]


@app.command()
def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    run: Annotated[Path | None, typer.Option(help="Run directory; default `runs/CONFIG-DATE`.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train an agent.

    Try `tutelage train dagger-cartpole`, or with an expert of your own
    `tutelage train dagger-hopper expert.oracle=grpc://host:50051`. `seeds=10` trains ten seeds.

    A run ends at the first of its `stop` criteria that is met, e.g. `stop.rounds=100`; with none it goes on
    until Ctrl-C, which ends any run after the current round with a checkpoint. `tutelage resume RUN` goes on.
    """
    from services.overrides import load_config

    sections = load_config(config, overrides or [])  # what is mistyped is said before the heavy imports
    if oracle := sections.get("expert", {}).get("oracle"):
        from expert_oracle.loading import check_word

        check_word(str(oracle))
    from services.commands import train_command

    _finish(train_command(config, overrides or [], run, quiet=as_json), as_json)


@app.command()
def resume(
    run: RunArgument,
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was interrupted, from its last checkpoint; labels on disk are kept.

    Sections `stop`, `run`, `expert`, `feedback` and `evaluation` may change, e.g. `stop.rounds=100`, and
    `env_runners.num_env_runners` and `method.comparisons`. Also for several seeds, of which there may be more
    then: `seeds=20`.
    """
    from services.commands import resume_command

    _finish(resume_command(run, overrides or [], quiet=as_json), as_json)


@app.command()
def evaluate(
    run: RunArgument,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to measure the return by.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the episodes; not the ones the policy was chosen by.")] = 1,
    video: Annotated[Path | None, typer.Option(help="Record one episode, as .mp4 or .webm.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the best policy of a run on fresh episodes."""
    _must_be_run(run)
    from services.commands import evaluate_command

    _finish(evaluate_command(run, episodes=episodes, seed=seed, video=video), as_json)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; seeds are pooled.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG, PDF or SVG.")] = Path("returns.png"),
) -> None:
    """Plot learning curves: interquartile means over seeds with bootstrap intervals."""
    from services.report import plot as draw

    left_out = draw(runs, output)
    typer.echo(f"wrote {output}" + f"; runs without a validation, left out: {left_out}" * bool(left_out))


@app.command()
def scale(
    run: RunArgument,
    num_env_runners: Annotated[int, typer.Argument(min=1, help="Rollout actors from the next round on.")],
) -> None:
    """Change the number of rollout actors of a run while it goes on."""
    _must_be_run(run)
    from services.commands import scale_command

    scale_command(run, num_env_runners)
    typer.echo(f"{run} will use {num_env_runners} env runners from its next round on")


@app.command()
def presets() -> None:
    """List the configurations that come with Tutelage."""
    from services.overrides import presets as shipped

    known = shipped()
    width = max(map(len, known))
    for name, description in known.items():
        typer.echo(f"{name:{width}}  {description}")


@app.command()
def doctor(
    oracle: Annotated[
        str | None, typer.Option(help="Also reach this expert, e.g. `grpc://host:50051`.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Also check this dataset folder.")] = None,
    labeler: Annotated[
        Path | None, typer.Option(help="Also check the store, ledger and questions of this labeler's folder.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make anew what is damaged of the labeler; nothing is lost.")
    ] = False,
    store: Annotated[
        str, typer.Option(metavar="URL", help="That labeler's store, where it has none of its own.")
    ] = "",
    ray: Annotated[bool, typer.Option("--ray", help="Also start Ray, which takes some seconds.")] = False,
) -> None:
    """Check this machine: versions, environments, video, disk; each failing line says what to do."""
    from services.doctor import doctor as examine

    if labeler is None and (repair or store):
        raise typer.BadParameter("give the labeler's folder: --labeler DIR")
    if labeler is not None and repair:
        from services.labeler.repair import repair as mend

        for line in mend(labeler, store):
            typer.echo(line)
    raise typer.Exit(examine(oracle=oracle, dataset=dataset, labeler=labeler, store=store, start_ray=ray))


@oracle_app.command("serve")
def oracle_serve(
    oracle: OracleArgument,
    arguments: OracleArguments = None,
    env: Annotated[
        str,
        typer.Option(metavar="ID", help="The environment it is for: its spaces are announced and held to."),
    ] = "",
    address: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 picks a free one.")
    ] = "127.0.0.1:50051",
    max_batch: Annotated[int, typer.Option(min=1, help="States in one forward, over all callers.")] = 4096,
    max_delay_ms: Annotated[
        float, typer.Option(min=0, help="How long a call waits for others to join.")
    ] = 0.0,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="States that may wait; who asks for more is told to come back.")
    ] = 65_536,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with an expert of its own.")] = 1,
    grace_s: Annotated[
        float, typer.Option(min=0, help="Seconds for accepted calls to finish after SIGTERM.")
    ] = 10.0,
    tls_cert: Annotated[str, typer.Option(metavar="PEM", help="Encrypt, with this certificate.")] = "",
    tls_key: Annotated[str, typer.Option(metavar="PEM", help="The certificate's key.")] = "",
    client_ca: Annotated[
        str, typer.Option(metavar="PEM", help="Let in who has a certificate that this authority signed.")
    ] = "",
    token_file: Annotated[
        str, typer.Option(metavar="FILE", help="Let in who has a token of this file, one a line.")
    ] = "",
    metrics_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Answer Prometheus; each further worker a port higher.")
    ] = "",
    log_format: Annotated[
        LogFormat, typer.Option(help="`text` for warnings, `json` for each event, on stderr.")
    ] = LogFormat.text,
) -> None:
    """Serve an expert over gRPC until SIGTERM or Ctrl-C, which let accepted calls finish."""
    from expert_oracle.access import ServerAccess
    from services.oracle import serve_command

    serve_command(
        oracle,
        arguments or [],
        address=address,
        processes=workers,
        log_format=log_format.value,
        access=ServerAccess(tls_cert, tls_key, client_ca, token_file),
        metrics_address=metrics_address,
        env_id=env,
        max_batch=max_batch,
        max_delay_s=max_delay_ms / 1e3,
        max_waiting=max_waiting,
        grace_s=grace_s,
    )


@oracle_app.command("check")
def oracle_check(
    oracle: OracleArgument,
    arguments: OracleArguments = None,
    *,
    env: Annotated[str, typer.Option(metavar="ID", help="The environment it is for.")],
    states: Annotated[int, typer.Option(min=2, help="How many it is asked about.")] = 100,
) -> None:
    """Ask an expert about states of its environment: do the answers fit, is each due to its state alone?

    Exit status 1 where something is to be mended; its line says what.
    """
    from services.oracle import check_command

    raise typer.Exit(check_command(oracle, arguments or [], env_id=env, states=states))


@oracle_app.command("ping")
def oracle_ping(
    address: AddressArgument, arguments: ClientArguments = None, as_json: JsonOption = False
) -> None:
    """Ask a service who it is, whether it is well, and how far away."""
    from services.oracle import ping_command

    _finish(ping_command(address, arguments or []), as_json)


@oracle_app.command("bench")
def oracle_bench(
    address: AddressArgument,
    arguments: ClientArguments = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="States in a call; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each row.")] = 2.0,
    shape: Annotated[
        str | None, typer.Option(help="Of one observation, e.g. `17`, where the service does not say.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure labels a second and latency of a service, by batch; it is asked about states of zeros."""
    from services.oracle import bench_command

    batches = batch or [1, 64, 1024]
    _finish(bench_command(address, arguments or [], batches=batches, seconds=seconds, shape=shape), as_json)


@labeler_app.command("serve")
def labeler_serve(
    folder: LabelerFolder = None,
    run: LabelerRun = None,
    address: Annotated[
        str, typer.Option(help="HOST:PORT of the page; port 0 picks a free one.")
    ] = "127.0.0.1:8080",
    grpc_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="For machines, by gRPC; empty: none.")
    ] = "",
    store: Annotated[
        str, typer.Option(metavar="URL", help="A Redis or Valkey; default: one of its own.")
    ] = "",
    access: Annotated[
        Switch, typer.Option(help="`off` lets everybody on this machine in; for the loopback only.")
    ] = Switch.on,
    token_file: Annotated[
        str, typer.Option(metavar="FILE", help="Machines that are let in, one a line: `TOKEN ROLE NAME`.")
    ] = "",
    tls_cert: Annotated[str, typer.Option(metavar="PEM", help="Encrypt, with this certificate.")] = "",
    tls_key: Annotated[str, typer.Option(metavar="PEM", help="The certificate's key.")] = "",
    repeats: Annotated[
        float, typer.Option(min=0, max=1, help="Share of questions that people are asked again later.")
    ] = 0.05,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Share of questions that one person more is asked.")
    ] = 0.1,
    gold: Annotated[
        float, typer.Option(min=0, max=1, help="Share of questions beside which a known one is asked.")
    ] = 0.05,
    video: Annotated[
        Video, typer.Option(help="How clips are encoded: `mp4` (H.264), or `webm` (VP9), larger but free.")
    ] = Video.mp4,
    invite: Annotated[bool, typer.Option("--invite", help="Print new links that let people in.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Begin with 40 comparisons of HalfCheetah to try the page with.")
    ] = False,
) -> None:
    """Serve the page that people answer on, until SIGTERM or Ctrl-C.

    It says which links to open. Everything is in its folder: stopped or killed, it goes on where it was.
    """
    from expert_oracle.access import ServerAccess
    from expert_oracle.metrics import log_to_stderr
    from services.labeler.serve import Settings, folder_of, serve_command

    log_to_stderr("text")
    settings = Settings(
        folder_of(folder, run),
        run=run,
        address=address,
        grpc_address=grpc_address,
        store=store,
        access=access is Switch.on,
        token_file=token_file,
        tls=ServerAccess(tls_cert, tls_key),
        repeats=repeats,
        overlap=overlap,
        gold=gold,
        video=video.value,
    )
    serve_command(settings, invite=invite, demo=demo)


@labeler_app.command("invite")
def labeler_invite(
    folder: LabelerFolder = None,
    run: LabelerRun = None,
    role: Annotated[
        RoleName, typer.Option(help="What they may do; a trainer gets a token.")
    ] = RoleName.annotator,
    uses: Annotated[int, typer.Option(min=1, max=10_000, help="How many people it lets in.")] = 1,
    name: Annotated[str, typer.Option(help="Whom it is for; needed for a token.")] = "",
    token: Annotated[bool, typer.Option("--token", help="A token for a machine instead.")] = False,
    store: Annotated[str, typer.Option(metavar="URL", help="That of the service, if not its own.")] = "",
    url: Annotated[
        str, typer.Option(metavar="URL", help="What people reach the service by; default: where it listens.")
    ] = "",
) -> None:
    """Print a new link, or a machine's token, for a labeler that is being served."""
    from services.labeler.serve import folder_of, invite_command

    machine = token or role is RoleName.trainer
    where = folder_of(folder, run)
    typer.echo(invite_command(where, store, role.value, uses=uses, name=name, machine=machine, url=url))


@labeler_app.command("answer")
def labeler_answer(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Of the labeler's gRPC.")],
    teacher: Annotated[
        str,
        typer.Argument(
            help="`oracle`, `stochastic`, `mistake`, `skip`, `equal`, `myopic`, `drifting`, `adversarial`, "
            "`judge`, or an expert's word."
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as `delay_s=2 annotator=ann token_file=F`."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer as a scripted labeler, until SIGTERM or Ctrl-C.

    Teachers compare clips by the environment's rewards (B-Pref); a judge is a language model that compares
    texts, `judge endpoint=http://HOST/v1 model=NAME`; an expert says what it would do, `checkpoint:cartpole`.
    """
    from expert_oracle.loading import arguments_by_name
    from services.labeler.answering import answer_command
    from services.overrides import key_values

    def say(line: str) -> None:
        typer.echo(line, err=as_json)

    with arguments_by_name():
        _finish(answer_command(address, teacher, key_values(arguments or []), say), as_json)


@reward_app.command("plot")
def reward_plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run that learns a reward, ended or not.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG, PDF or SVG.")] = Path("reward.png"),
    video: Annotated[
        Path | None, typer.Option(help="Also film the episode, the rewards under it, as .mp4 or .webm.")
    ] = None,
) -> None:
    """See whether a run has learnt the reward that was meant. Four panels:

    Above, the **return of segments** that were asked about, learnt against true: a line is what is hoped for,
    a cloud is a reward that follows something else. Beside it **answers held out** from the fit: points off
    the diagonal are over- or underconfidence, the numbers say how many answers a point stands for.

    Below, how far the **members of the ensemble disagree** about each question, and how many new answers were
    foreseen; disagreement that stays calls for more questions. Beside it an **episode of the newest policy**:
    learnt reward that rises where the true one does not is a reward that is being exploited.

    The true reward is what a scripted teacher judged by, else the environment's own; the learner saw neither.
    """
    _must_be_run(run)
    from services.reward import plot_reward

    plot_reward(run, output, video=video)
    for path in filter(None, (output, video)):
        typer.echo(f"wrote {path}")


def _finish(summary: dict[str, Any] | None, as_json: bool) -> None:
    if as_json and summary is not None:
        typer.echo(json.dumps(summary))


def _must_be_run(path: Path) -> None:
    """Raise ConfigError before the heavy imports."""
    from services.run_directory import RunDirectory

    RunDirectory.open(path)


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.secho(f"warning: {message}", err=True, fg=typer.colors.YELLOW)


def main() -> None:
    """Entry point: errors that a user can act on are one line and exit status 2."""
    from tutelage.errors import TutelageError, show_traceback

    warnings.showwarning = _one_line_warning
    try:
        app()
    except TutelageError as error:
        show_traceback()
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)


if __name__ == "__main__":
    main()
