"""What the README shows is what the run record says."""

import re
from pathlib import Path

from rsseglab.experiments.run import table
from rsseglab.training.records import RunRecord

ROOT = Path(__file__).parents[1]


def test_the_quickstart_table_is_the_record_s():
    record = RunRecord.read(ROOT / "book/records/quickstart_synthetic.json")
    columns = {name: m for name, m in record.metrics["pooled"].items() if isinstance(m, dict)}
    shown = "\n".join(line.rstrip() for line in table(columns).to_string().splitlines())
    assert shown in (ROOT / "README.md").read_text(), f"put this table into the README:\n{shown}"


def test_the_picture_is_there():
    assert (ROOT / "book/images/quickstart.png").stat().st_size < 1_500_000


def test_each_number_of_the_benchmarks_is_its_record_s():
    pattern = r"\| ([\d.]+) \| \[(\w+)\]\(book/records/\2\.json\) `(\w+)` \|"
    rows = re.findall(pattern, (ROOT / "README.md").read_text())
    assert len(rows) >= 7
    for shown, name, key in rows:
        record = RunRecord.read(ROOT / f"book/records/{name}.json")
        assert shown == f"{record.metrics['pooled'][key]:.2f}", (name, key)
