"""The commands plan, pilot, bench, submit, audit and sweep."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli_options import (
    AsJson,
    ConfigFile,
    Out,
    Overrides,
    Workers,
    load_config,
    run_folder,
)
from pipeline.errors import ConfigError
from storage.durable_write import write_atomically

PriceOfHour = Annotated[
    float | None, typer.Option("--price", min=0, help="Price of a worker-hour (GPU-hour).")
]
Currency = Annotated[
    str | None, typer.Option("--currency", help="What the price is in, such as EUR.")
]


def plan(
    config: ConfigFile,
    set_: Overrides = None,
    workers: Workers = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Estimate for so many GPUs.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Sustained TFLOP/s of one GPU, as you state it; else as `unlearn bench` measured "
            "this machine's, else 100.",
        ),
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory", min=0.1, help="Memory of one GPU in GiB; else as --tflops, or 80."
        ),
    ] = None,
    price: PriceOfHour = None,
    currency: Currency = None,
    units: Annotated[
        int | None, typer.Option("--units", help="Plan without data, for so many units.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", help="Plan without data, for so many training samples."),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input-shape",
            help="Without data: shape of one input, such as 784 or 3x32x32, where the source does "
            "not say.",
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option("--classes", help="Without data: the model's outputs, likewise."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure HVP forms and chunk sizes.")
    ] = False,
    with_pilot: Annotated[
        bool, typer.Option("--pilot", help="Also train, and measure the error (unlearn pilot).")
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Predict time, memory, storage and cost of a run. Without --pilot nothing is trained.

    With --units or --samples neither data nor model are needed, and nothing is measured: the rates are
    those of `unlearn bench`, or stated.
    """
    from cluster import plan_text
    from cluster.console import Reporter, print_table
    from cluster.counted import Counts
    from cluster.counted_plan import Hardware, Price, plan_counts

    settings = load_config(config, set_)
    counts = Counts.of(units, samples, input_shape, classes)
    if counts is not None and (tune or with_pilot):
        raise ConfigError("--tune and --pilot measure with data; leave --units and --samples out")
    paid = Price(price, currency)
    hardware = Hardware(gpus, tflops, gpu_memory, workers)
    if counts is not None:
        summary = plan_counts(settings, counts, hardware, paid)
    else:
        from cluster import pilot_stage, plan_stage

        reporter = Reporter()
        if tune:
            with reporter.stage("tuning", "measurements") as report:
                tried = plan_stage.tune(settings, report)
            _print_tuning(tried, as_json)
            return
        with reporter.stage("plan", "measurements") as report:
            summary = plan_stage.plan(settings, hardware, paid, report)
        if with_pilot:
            folder = run_folder(out, settings)
            summary["pilot"] = pilot_stage.pilot(settings, folder, reporter, price=paid)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    print_table(plan_text.plan_table(summary))
    for line in plan_text.plan_lines(summary):
        typer.echo(line)
    if with_pilot:
        print_table(pilot_stage.pilot_table(summary["pilot"]))
        for line in pilot_stage.pilot_lines(summary["pilot"]):
            typer.echo(line)


def _print_tuning(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"tried": results}))
        return
    for row in results:
        found = row.get("refused") or f"{1e3 * row['hvp_seconds']:.4g} ms per HVP"
        typer.echo(f"recursion.hvp={row['hvp']} recursion.chunk={row['chunk']}: {found}")


def pilot(
    config: ConfigFile,
    out: Out = None,
    set_: Overrides = None,
    search: Annotated[
        bool, typer.Option("--search", help="Try changes of the recipe; print what they cost.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option("--write", help="Write the best configuration as YAML.")
    ] = None,
    retrainings: Annotated[
        int, typer.Option(min=3, help="The most trainings without some units.")
    ] = 30,
    approximators: Annotated[
        int, typer.Option(min=3, help="The most approximators, by each engine.")
    ] = 64,
    price: PriceOfHour = None,
    currency: Currency = None,
    as_json: AsJson = False,
) -> None:
    """Measure the error of deletions before the precompute. Repeat to continue."""
    from cluster import pilot_search_stage, pilot_stage
    from cluster.console import Reporter, print_table
    from cluster.counted_plan import Price
    from pipeline.evaluation.pilot_design import Budget

    paid = Price(price, currency)
    settings = load_config(config, set_)
    folder, reporter = run_folder(out, settings), Reporter()
    budget = Budget(retrainings, approximators)
    if search:
        result = pilot_search_stage.search(settings, folder, reporter, budget, paid)
        table, lines = pilot_search_stage.frontier_table(result), result.pop("lines")
        chosen = pilot_search_stage.chosen_config(settings, result)
    else:
        result = pilot_stage.pilot(settings, folder, reporter, budget, paid)
        table, lines = pilot_stage.pilot_table(result), pilot_stage.pilot_lines(result)
        chosen = pilot_stage.with_engine(settings, result["recommended"])
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_table(table)
        for line in lines:
            typer.echo(line)
    if write is not None:
        write_atomically(write.absolute(), chosen.to_yaml().encode())
        reporter.say(f"wrote {write}")


def bench(
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="How long it may take, about.")
    ] = 120.0,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: the GPU where there is one.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure this machine, and keep the rates for `unlearn plan --gpus`. Nothing is trained."""
    import torch

    from cluster import bench_stage, rates_file
    from cluster.console import Reporter, print_table

    available = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not available):
        found = "torch sees no GPU" if device == "cuda" else f"--device is {device!r}"
        raise ConfigError(f"{found}; expected --device cpu, cuda or auto")
    chosen = "cuda" if available and device != "cpu" else "cpu"
    with Reporter().stage("bench", "networks") as report:
        rates = bench_stage.measure(torch.device(chosen), seconds, report)
    path = rates_file.bench_file()
    rates_file.store(rates, path)
    if as_json:
        typer.echo(json.dumps({"path": str(path), **asdict(rates)}))
        return
    print_table(bench_stage.bench_table(rates))
    typer.echo(f"kept in {path}")


def submit(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A YAML file, see configs/.")
    ] = None,
    address: Annotated[
        str, typer.Option("--address", help="The cluster's dashboard, http://host:8265.")
    ] = "http://127.0.0.1:8265",
    out: Annotated[
        str | None, typer.Option("--out", help="Run directory, as the cluster's nodes see it.")
    ] = None,
    set_: Overrides = None,
    include: Annotated[
        list[Path] | None, typer.Option("--include", help="File or folder to send along.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Have nodes install the versions installed here.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Stream the job's lines until it ends.")] = True,
    stop: Annotated[str | None, typer.Option("--stop", help="Stop this job instead.")] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated", help="Submit to a dashboard without authentication."
        ),
    ] = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Print a KubeRay RayJob; submit nothing.")
    ] = False,
    image: Annotated[
        str | None, typer.Option("--image", help="Container image of the manifest.")
    ] = None,
) -> None:
    """Run a configuration on a cluster, as a Ray job. Exits with the job's exit code."""
    from cluster import jobs  # Ray takes seconds to import; help and errors need none

    if stop is not None:
        typer.echo(jobs.stop(address, stop, allow_unauthenticated))
        return
    if config is None:
        raise ConfigError("give a configuration to submit, or --stop and a job's name")
    settings = load_config(config, set_)
    if manifest:
        if include or out is not None:
            raise ConfigError(
                "a manifest sends no files and keeps its runs on its own volume; leave --include and "
                "--out away, and put a model of your own into the image"
            )
        if image is None:
            raise ConfigError("a manifest needs --image, a container with this program and its Ray")
        from cluster.kuberay import Kubernetes
        from cluster.kuberay import manifest as manifest_of

        typer.echo(manifest_of(settings, Kubernetes(image)))
        return
    if out is None:
        raise ConfigError(
            "give --out, the run directory on storage that every node of the cluster sees"
        )
    options = jobs.JobOptions(out, include or (), install, allow_unauthenticated, follow)
    _, code = jobs.submit(settings, address, options, typer.echo)
    raise typer.Exit(code)


def audit(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|CONFIG", help="A run directory, or a configuration to run first."
        ),
    ],
    rates: Annotated[
        str, typer.Option(help="Units or shares to delete, separated by commas.")
    ] = "0.01,0.05,0.1,0.2,0.3",
    seeds: Annotated[int, typer.Option(min=1, help="Random forget sets per rate.")] = 5,
    shadows: Annotated[
        int, typer.Option(min=0, help="Shadow models of the membership attacks; 0: no attacks.")
    ] = 32,
    as_json: AsJson = False,
) -> None:
    """Compare with baselines and attack by membership inference. Repeat to continue."""
    from cluster.audit_stage import audited_run, carry_out, plan_of
    from cluster.console import Reporter

    reporter = Reporter()
    run = audited_run(target, reporter)
    figures = carry_out(run, plan_of(run, _rates(rates), seeds, shadows), reporter)
    typer.echo(json.dumps(figures) if as_json else str(run.path / "report.html"))


def _rates(text: str) -> tuple[int | float, ...]:
    """Parse "1,0.05": whole numbers are units, fractions a share of the units."""
    try:
        values = [float(part) if "." in part else int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--rates {text!r} is not a list of numbers such as 1,0.05") from error
    if not all(value >= 1 if isinstance(value, int) else 0 < value < 1 for value in values):
        raise ConfigError(f"--rates {text!r}: whole numbers from 1, or shares between 0 and 1")
    return tuple(values)


def sweep(
    config: ConfigFile,
    settings: Annotated[
        str | None,
        typer.Option("--settings", help="Settings, separated by commas; default: all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the sweep; default runs/<name>-sweep.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Vary one setting at a time and report the error. Repeat to continue."""
    from cluster import sweep_stage
    from cluster.console import Reporter
    from pipeline.evaluation.sweep import SETTINGS

    base = load_config(config, set_)
    names = [name.strip() for name in settings.split(",")] if settings else list(SETTINGS)
    default = run_folder(None, base)
    folder = out or default.with_name(f"{default.name}-sweep")
    figures = sweep_stage.sweep(base, names, folder, Reporter())
    typer.echo(json.dumps(figures) if as_json else str(folder / "sweep.html"))
