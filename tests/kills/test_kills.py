"""A sample of all kills: run again, the command ends as if nothing had happened."""

from pathlib import Path

from kills.campaign import Campaign, Findings
from kills.commands import COMMANDS


def test_a_killed_command_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    campaign, findings = Campaign(tmp_path), Findings()
    # There is something to kill: a distillation alone changes the file system some hundred times.
    assert len(campaign.changes["distill"]) > 50
    campaign.try_all(campaign.sample(len(COMMANDS), seed=17), findings)
    assert findings.violations == [], findings.table()
    assert set(findings.tried) == set(COMMANDS)


def test_the_campaign_sees_what_differs_and_what_is_left(tmp_path: Path) -> None:
    campaign, findings = Campaign(tmp_path, ["plan -o FILE"]), Findings()
    (kill,) = campaign.sample(1, seed=0)
    campaign.whole["plan -o FILE"] = {"out.json": b"other"}
    campaign.try_all([kill], findings)
    assert [line.partition(":")[0] for line in findings.violations] == ["differences"]
    campaign.whole["plan -o FILE"] = {}
    campaign.try_all([kill], findings)
    assert "leftovers: plan -o FILE, killed before change" in findings.violations[-1]
