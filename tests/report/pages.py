"""Documents with all that an HTML page can show, and a browser to look at pages with."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import bnfold
from bnfold.report.details import Affine, Details, InputFile, Picture, SiteError, Vertex, Way
from bnfold.report.document import Document
from bnfold.report.gather import details_of
from tests.networks import NETWORKS
from tests.report.samples import NASTY, nasty

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

EVIL = f"{NASTY}</script><script>document.title='broken out'</script><img src=x onerror=alert(1)>\u2028"


def of_network(name: str) -> Document:
    model, inputs = NETWORKS[name]()
    folding = bnfold.fold(model, inputs)
    report = bnfold.verify(model, folding.module, inputs, onnx=False)
    return Document(
        command="fold",
        model=name,
        inputs=("2x3x32x32", "found"),
        capture=folding.plan.capture,
        batchnorms=folding.plan.decisions,
        verification=report.to_dict(),
        details=details_of(folding, inputs, seed=0),
    )


def hostile() -> Document:
    """Return a document in which every string, those of the picture too, tries to break out of the page."""
    plain = nasty()
    decisions = tuple(
        replace(d, batchnorm=EVIL, detail=EVIL, site=EVIL, source=EVIL, into=(EVIL,) if d.into else ())
        for d in plain.batchnorms
    )
    conv, norm = Vertex(EVIL, EVIL, EVIL, "weights"), Vertex(EVIL + "2", EVIL, EVIL, "batchnorm", (0,))
    ways = (Way(0, 1, (0,), ((1, 0),)),)
    details = Details(
        seed=0,
        files=(InputFile(EVIL, "ab" * 32, 3),),
        pictures=(Picture(EVIL, (conv, norm), (conv,), ways),),
        affines=(Affine(0, (1.0, -1.0, 0.0), (0.0, 1.0, 2.0)), Affine(1, (1.0,), (float("nan"),))),
        sites=tuple(SiteError(number % 2, 1e-7, 1e-7) for number in range(3)),
        remarks=(EVIL,),
    )
    return plain.with_results(batchnorms=decisions, candidate=EVIL, inputs=(EVIL, EVIL), details=details)


def browse(page: Path, profile: Path, *arguments: str, hash_: str = "") -> tuple[str, list[str]]:
    """Open a page in a headless browser; return its DOM as text, and what it wrote to the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--v=0",
            *arguments,
            "--dump-dom",
            f"{page.as_uri()}{hash_}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
