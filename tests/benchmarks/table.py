"""The benchmarks' tables in Markdown, from the JSON that is committed: `python tests/benchmarks/table.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def products(content: dict) -> str:
    rows = [
        [str(batch["images"]), row["engine"], row["choice"], f"{row['gradients per product']:.2f}"]
        for batch in content["batches"]
        for row in batch["engines"]
    ]
    rows += [
        [str(batch["images"]), engine, "", "failed"] for batch in content["batches"] for engine in batch["failures"]
    ]
    title = f"Cost of a Hessian-vector product, {content['checkpoint']}"
    return titled(title, content, markdown(["images", "engine", "choice", "gradients per product"], rows))


def peers(content: dict) -> str:
    cost = content["gradients per product"]
    rows = []
    for case in sorted({(run["k"], -run["target"]) for run in content["runs"]}):
        for run in content["runs"]:
            if (run["k"], -run["target"]) == case:
                rows.append([f"top-{run['k']} to {run['target']:g}", run["tool"], *outcome(run)])
    header = ["task", "tool", "products", "seconds", "worst residual", "worst error of a value", "setting"]
    title = (
        f"Largest eigenvalues, {content['checkpoint']} ({content['parameters']:,} parameters) on "
        f"{content['images']} images. One product costs, in gradients: "
        + ", ".join(f"{name} {value:.2f}" for name, value in cost.items())
    )
    return titled(title, content, markdown(header, rows))


def outcome(run: dict) -> list[str]:
    if "products" not in run:
        return ["not reached", "", "", "", ""]
    products = str(run["products"]) if run["reached"] else f"not reached: {run['products']}"
    setting = f"{run['knob']} {run['setting']:.2g}"
    seconds = "" if run["seconds"] is None else f"{run['seconds']:.1f}"  # where other work disturbed it
    return [products, seconds, f"{run['residual']:.1e}", f"{run['value_error']:.1e}", setting]


def density(content: dict) -> str:
    steps = sorted({row["steps"] for row in content["errors"]})
    keys = sorted({(row["probes"], row["method"]) for row in content["errors"]}, key=lambda key: key[0])
    cells = {(row["probes"], row["method"], row["steps"]): row for row in content["errors"]}
    rows = [
        [
            str(key[0]),
            key[1],
            *(f"{100 * cells[(*key, m)]['error']:.3f} ({cells[(*key, m)]['products']})" for m in steps),
        ]
        for key in keys
    ]
    title = (
        f"Spectral density of a trained network of {content['parameters']:,} parameters: Wasserstein-1 distance to its "
        "dense spectrum in % of the range, and in brackets all products"
    )
    peer, gain = content["PyHessian"], content["advantage"]
    gains = ", ".join(f"{ratio:.1f} ({probes} probes)" for probes, ratio in gain["at equal products"].items())
    remarks = (
        f"At equal products (ours at {gain['steps']} steps) curvlinops' error is larger by a factor of {gains}. "
        f"PyHessian {peer['version']}: {peer['density']}"
    )
    return (
        titled(title, content, markdown(["probes", "method", *(f"{m} steps" for m in steps)], rows)) + f"\n\n{remarks}"
    )


def spectrum(content: dict) -> str:
    rows = [
        [
            "random" if start == "cold" else "first mini-batch's eigenvectors and noise",
            f"{sum(content[start]['products']) / len(content[start]['products']):.1f}",
            f"{content[start]['seconds']:.0f}",
            f"{100 * content[start]['overhead beyond products']:.1f} %",
        ]
        for start in ("cold", "warm")
    ]
    title = (
        f"Max-eigenvalue spectrum, {content['checkpoint']}: top-{content['top']} and smallest of mini-batches of "
        f"{content['images']} images to {content['tolerance']:g}"
    )
    header = ["start", "products per batch", "seconds", "time beyond products, graphs included"]
    return titled(title, content, markdown(header, rows))


def memory(content: dict) -> str:
    sizes = {
        "graphs": sum(content["graph bytes"]),
        "basis": content["basis bytes"],
        "growth": content["growth bytes"],
        "growth, freed memory returned": content.get("growth bytes, tight"),
        "of which a gradient's": content.get("growth bytes of a gradient, tight"),
        "peak of the process": content["peak bytes"],
    }
    sizes = {name: size for name, size in sizes.items() if size is not None}
    row = [
        f"top-{content['k']} to 1e-3, {content['images']} images, {content['parameters']:,} parameters",
        str(content["products"]) + ("" if content["converged"] else " (not converged)"),
        f"{content['seconds']:.0f}",
        *(f"{size / 2**30:.2f}" for size in sizes.values()),
    ]
    header = ["task", "products", "seconds", *(f"{name} (GiB)" for name in sizes)]
    title = f"Memory, {content.get('checkpoint', content.get('model'))}; {content['engine']}"
    return titled(title, content, markdown(header, [row]))


TABLES: dict[str, Callable[[dict], str]] = {
    "products": products,
    "peers": peers,
    "density": density,
    "spectrum": spectrum,
    "memory": memory,
    "large": memory,
}


def titled(title: str, content: dict, table: str) -> str:
    machine = content["machine"]
    return f"{title}; {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}.\n\n{table}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def path_of(part: str, folder: Path = RESULTS) -> Path:
    return folder / f"hessian_{part}.json"


def main() -> None:
    """Print the table of each part that has been measured."""
    measured = [part for part in TABLES if path_of(part).is_file()]
    print("\n\n".join(TABLES[part](json.loads(path_of(part).read_text())) for part in measured))


if __name__ == "__main__":
    main()
