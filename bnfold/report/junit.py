"""The report as JUnit XML: one test case per BatchNorm and per comparison, for a CI's test view."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bnfold.fold.decision import Decision
from bnfold.report.benched import COLUMNS, bench_rows
from bnfold.report.document import Document
from bnfold.report.escape import for_xml, for_xml_attribute
from bnfold.report.words import became, name_of, number

__all__ = ["junit"]


def junit(document: Document) -> str:
    """Return the document as JUnit XML.

    A comparison that failed is a failure. A BatchNorm that did not fold is one only where ``--strict`` was given; else
    its reason stands in the test case's output.
    """
    suites = [
        ("bnfold.batchnorms", list(_batchnorms(document))),
        ("bnfold.verification", [_comparison(comparison) for comparison in document.comparisons]),
    ]
    verification = document.verification
    if verification is not None and not verification["passed"] and all(c["passed"] for c in document.comparisons):
        suites[1][1].append(
            _case("bnfold.verification", "verdict", failure=str(verification.get("reason") or "failed"))
        )
    if document.bench is not None:
        rows = [
            _case(
                "bnfold.bench",
                f"{row[0]} batch {row[1]}",
                output=", ".join(map(" ".join, zip(COLUMNS, row, strict=True))),
            )
            for row in bench_rows(document.bench)
        ]
        suites.append(("bnfold.bench", rows))
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<testsuites name={for_xml_attribute(document.model)}>"]
    for name, cases in suites:
        failures = sum("<failure" in case for case in cases)
        lines.append(f'  <testsuite name="{name}" tests="{len(cases)}" failures="{failures}" errors="0" skipped="0">')
        lines += [f"    {case}" for case in cases]
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>"]) + "\n"


def _batchnorms(document: Document) -> Iterator[str]:
    for decision in document.batchnorms:
        name = name_of(decision, document.batchnorms)
        failure = decision.detail if document.strict and decision.action != "fold" else None
        yield _case("bnfold.batchnorms", name, failure=failure, output=_told(decision))


def _told(decision: Decision) -> str:
    into = f" into {', '.join(decision.into)}" if decision.into else ""
    through = f" through {', '.join(decision.through)}" if decision.through else ""
    return f"{became(decision)}{into}{through}. {decision.detail}"


def _comparison(comparison: dict[str, Any]) -> str:
    measured = (
        f"error {number(comparison['max_abs'])}, noise floor {number(comparison['noise_floor'])}, "
        f"allowed {number(comparison['allowed'])}"
    )
    told = "; ".join(filter(None, (measured, comparison.get("detail"))))
    failure = None if comparison["passed"] else told
    return _case("bnfold.verification", str(comparison["name"]), failure=failure, output=told)


def _case(suite: str, name: str, *, failure: str | None = None, output: str = "") -> str:
    inside = "" if failure is None else f"<failure message={for_xml_attribute(failure)}/>"
    inside += f"<system-out>{for_xml(output)}</system-out>" if output else ""
    return f'<testcase classname="{suite}" name={for_xml_attribute(name)}>{inside}</testcase>'
