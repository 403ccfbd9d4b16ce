"""Runs `obelisk bench` and benches/pytorch.py in turn and writes RESULTS.md; compare.sh starts it. Or, with `--against`,
`obelisk bench` of two builds, and prints their ratios.

A ratio is the median of all timed runs of ours over that of PyTorch's, in one alternating run: times on a shared machine
drift, ratios less. Where the work runs on the processor, the ratio of processor seconds (all threads) stands beside it.
"""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
CASES = {
    "hybrid": ("`obeliskhybrid_tcia`, 144³", "--arch obeliskhybrid_tcia"),
    "unet": ("`allconvunet_tcia`, 144³", "--arch allconvunet_tcia"),
    "sparse": ("`obelisk`, sparse step of 3 scans × 192 locations", "--arch obelisk --sparse 3,192"),
    "layer512": ("OBELISK layer, 512 offsets → 256 on 36³", "--layer 512,256,4"),
    "layer1024": ("OBELISK layer, 1024 pairs of offsets → 256 on 36³", "--layer 1024,256,4 --binary"),
    "layer8": ("OBELISK layer, 8 channels × 128 offsets → 64 on 36³", "--layer 128,64,1 --channels 8"),
    "layer8input": ("the same with the input's gradient", "--layer 128,64,1 --channels 8 --input-gradient"),
}
# What the table is held against: inference and training (or a layer's forward, forward and backward), by case and device.
GOALS = {
    "cpu": {
        "hybrid": (0.8, 1.1),
        "unet": (1.0, 1.4),
        "sparse": (None, 0.5),
        "layer512": (0.15, 0.3),
        "layer1024": (0.15, 0.3),
        "layer8": (0.5, 0.5),
        "layer8input": (0.5, 0.5),
    },
    "cuda": {"hybrid": (0.7, 1.0)},
}
SECTIONS = {"cpu": "Software Vulkan and PyTorch on the same processor", "cuda": "NVIDIA GPUs: Vulkan and PyTorch CUDA"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="alternations")
    parser.add_argument("--steps", type=int, default=2, help="timed runs of each program in a round")
    parser.add_argument("--only", action="append", choices=CASES, help="cases; all without it")
    parser.add_argument("--size", default="144,144,144", help="another size, for trying the script out; writes no results")
    parser.add_argument("--device", choices=SECTIONS, help="where PyTorch runs; cuda where there is one")
    parser.add_argument("--adapter", help="as for obelisk")
    parser.add_argument("--against", metavar="PROGRAM", help="another build of obelisk, instead of PyTorch; writes no results")
    return parser.parse_args()


def run(command):
    print("$", shlex.join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"failed: {shlex.join(command)}")
    return json.loads(done.stdout)


def compare_builds(args):
    """Seconds and processor seconds of two builds, each first in every second round, since machines drift."""
    builds = {"other": args.against, "this": os.environ["OBELISK"]}
    adapter = ["--adapter", args.adapter] if args.adapter else []
    print("| | other, s | this, s | ratio | least | processor seconds |")
    print("|---|---|---|---|---|---|")
    for case in args.only or CASES:
        what = CASES[case][1].split() + ["--size", args.size, "--steps", str(args.steps), *adapter, "--json"]
        reports = {name: [] for name in builds}
        for i in range(args.rounds):
            for name in sorted(builds, reverse=i % 2):
                reports[name].append(run([builds[name], "bench", *what]))
        for phase in ("inference", "training"):
            if reports["this"][0].get(phase):
                before, after = (seconds(reports[name], phase) for name in builds)
                least = [min(r[phase]["seconds"]["min"] for r in reports[name]) for name in builds]
                computed = [processor_seconds(reports[name], phase) for name in builds]
                ratios = [b / a if a and b else float("nan") for a, b in ((before, after), least, computed)]
                numbers = " | ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"| {CASES[case][0]}: {phase} | {before:.4f} | {after:.4f} | {numbers} |", flush=True)


def cuda_available():
    code = "import torch; print(int(torch.cuda.is_available()))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"


def measure(case, args, device):
    """All rounds of a case: ours, and PyTorch's by name, as lists of reports."""
    what = CASES[case][1].split() + ["--size", args.size, "--steps", str(args.steps)]
    ours = [os.environ["OBELISK"], "bench", *what, "--json"]
    ours += ["--adapter", args.adapter] if args.adapter else []
    theirs = {"PyTorch": [sys.executable, str(HERE / "pytorch.py"), *what, "--device", device]}
    if device == "cuda":
        theirs["PyTorch, TF32"] = [*theirs["PyTorch"], "--tf32"]
    reports = {"obelisk": [], **{name: [] for name in theirs}}
    for i in range(args.rounds):
        # Kernels are timed after the runs that count.
        per_kernel = ["--per-kernel"] if case == "hybrid" and i == 0 else []
        reports["obelisk"].append(run(ours + per_kernel))
        for name, command in theirs.items():
            reports[name].append(run(command))
    return reports


def seconds(reports, phase):
    """The median over all timed runs; ours tells medians of a round's runs."""
    values = []
    for report in reports:
        measured = report[phase]["seconds"]
        values += [measured["median"]] if isinstance(measured, dict) else [statistics.median(measured)]
    return statistics.median(values)


def processor_seconds(reports, phase):
    values = [r[phase].get("processor_seconds") for r in reports]
    return None if None in values else statistics.median(values)


def memory(reports, phase):
    values = [r[phase]["memory"]["peak"] if "memory" in r[phase] else r[phase]["peak_bytes"] for r in reports]
    return max(values) / 1e6


def rows(case, reports, device):
    goals = GOALS[device].get(case, (None, None))
    layer = "--layer" in CASES[case][1]
    for phase, goal in zip(("inference", "training"), goals):
        if phase not in reports["obelisk"][0]:
            continue
        name = {"inference": "forward", "training": "forward and backward"}[phase] if layer else phase
        ours, ours_computed = (f(reports["obelisk"], phase) for f in (seconds, processor_seconds))
        for other in list(reports)[1:]:
            theirs, theirs_computed = (f(reports[other], phase) for f in (seconds, processor_seconds))
            ratio = ours / theirs
            computed = f"{ours_computed / theirs_computed:.2f}" if device == "cpu" and ours_computed else "–"
            verdict = "" if goal is None else f"≤ {goal} {'✓' if ratio <= goal else '✗'}"
            yield (
                f"| {CASES[case][0]}: {name} | {other} | {ours:.4f} | {theirs:.4f} | **{ratio:.2f}** | {computed} "
                f"| {verdict} | {memory(reports['obelisk'], phase):.0f} | {memory(reports[other], phase):.0f} |"
            )


def kernels(report, phase):
    """Kernels of a submission by operation, against what the adapter's ceilings allow them."""
    best, sums = report["ceilings"], {}
    for k in report[phase]["kernels"]:
        floor = max(k["flop"] / best["gigaflops"], k["bytes"] / best["gigabytes"]) / 1e9
        count, seconds, least = sums.get(k["op"], (0, 0.0, 0.0))
        sums[k["op"]] = count + 1, seconds + k["seconds"], least + floor
    yield f"{phase} | ms | kernels | floor, ms | times the floor"
    yield "---|---|---|---|---"
    for op, (count, seconds, floor) in sorted(sums.items(), key=lambda item: -item[1][1])[:12]:
        yield f"{op} | {seconds * 1e3:.3f} | {count} | {floor * 1e3:.3f} | {seconds / floor:.1f}"
    count, seconds, floor = (sum(s[i] for s in sums.values()) for i in range(3))
    yield f"all operations | {seconds * 1e3:.3f} | {count} | {floor * 1e3:.3f} | {seconds / floor:.1f}"


def processor():
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor()


def section(all_reports, args, device):
    first = next(iter(all_reports.values()))
    ours, torch = first["obelisk"][0], first["PyTorch"][0]
    adapter = ours["adapter"]
    where = f"{adapter['name']} ({adapter['backend']}, {adapter['driver']})"
    theirs = f"PyTorch {torch['torch']}"
    if device == "cuda":
        theirs += f" on {torch['device']}, CUDA {torch['cuda']}, cuDNN {torch['cudnn']}"
    load = ", ".join(f"{n:.1f}" for n in os.getloadavg())
    command = "benches/compare.sh " + shlex.join(sys.argv[1:])
    lines = [
        f"{date.today()}, {processor()} with {os.cpu_count()} cores, {platform.system()} {platform.release()}. "
        f"obelisk {ours['version']} on {where}; {theirs}. `{command.strip()}`: {args.rounds} alternations of {args.steps} "
        f"timed runs. Load averages at the end: {load} (the two programs themselves are at most {os.cpu_count()}).",
        "",
        "| | against | ours, s | theirs, s | ratio | processor seconds | asked | ours, MB | theirs, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, reports in all_reports.items():
        lines += rows(case, reports, device)
    measured = all_reports["hybrid"]["obelisk"][0] if "hybrid" in all_reports else {}
    if "ceilings" in measured:
        best = measured["ceilings"]
        lines += [
            "",
            f"Where `obeliskhybrid_tcia`'s time goes. The floor is what a copy kernel ({best['gigabytes']:.0f} GB/s) and a "
            f"multiply-add kernel ({best['gigaflops']:.0f} GFLOP/s) of the same adapter would take for a kernel's bytes, each "
            "once, or its operations, whichever is longer.",
        ]
        for phase in ("inference", "training"):
            lines += ["", *(f"|{line}|" if line.startswith("-") else f"| {line} |" for line in kernels(measured, phase))]
    return "\n".join(lines)


HEADER = """# obelisk and PyTorch

Written by `benches/compare.sh`, which anyone can run again. Ratios are ours / PyTorch's, medians of alternating runs, f32,
batch 1, 9 labels, below 1 where obelisk is faster. A training step is forward, cross-entropy and soft Dice, backward and
Adam. Ours in MB is the peak of device memory, read-backs and uploads included; PyTorch's is the process's largest
resident set on a processor, and the peak that its CUDA allocator handed out on a GPU. Inference ends in labels for ours,
in logits for PyTorch.
"""


def write(text, device):
    """Replaces this device's section and keeps the other's."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    parts = re.split(r"^## (.*)\n", old, flags=re.M)
    kept = {title: body.strip() for title, body in zip(parts[1::2], parts[2::2])}
    kept[SECTIONS[device]] = text
    body = [f"## {title}\n\n{kept.get(title, 'Unmeasured.')}\n" for title in SECTIONS.values()]
    temporary = RESULTS.with_suffix(".md.new")
    temporary.write_text("\n".join([HEADER, *body]))
    temporary.replace(RESULTS)


def main():
    args = arguments()
    if args.against:
        compare_builds(args)
        return
    device = args.device or ("cuda" if cuda_available() else "cpu")
    all_reports = {}
    for case in args.only or CASES:  # written after each, so that an interrupted comparison leaves what it has
        all_reports[case] = measure(case, args, device)
        text = section(all_reports, args, device)
        if args.size == "144,144,144":
            write(text, device)
    print(text)


if __name__ == "__main__":
    main()
