import pytest

from famix.evaluation import format_class_results, format_results, mean_over_targets

FOG = {"mIoU": 40.0, "fwIoU": 60.0, "mACC": 50.0, "pACC": 70.125, "IoU-road": 90.0}
NIGHT = {"mIoU": 15.5, "fwIoU": 20.0, "mACC": 30.0, "pACC": 50.0}


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_several_data_sets_have_a_mean():
    table = format_results({"acdc_fog": {"sem_seg": FOG}, "acdc_night": {"sem_seg": NIGHT}})
    head, rule, *body = rows(table)
    assert head == ["data set", "mIoU", "fwIoU", "mACC", "pACC"]
    assert all(set(cell) <= {"-", ":"} for cell in rule), "it must be Markdown"
    assert body == [
        ["acdc_fog", "40.00", "60.00", "50.00", "70.12"],
        ["acdc_night", "15.50", "20.00", "30.00", "50.00"],
        ["mean", "27.75", "40.00", "40.00", "60.06"],
    ]


def test_one_data_set_has_none():
    _, _, *body = rows(format_results({"acdc_fog": {"sem_seg": FOG}}))
    assert [row[0] for row in body] == ["acdc_fog"]


def test_other_tasks_are_left_out():
    results = {"acdc_fog": {"sem_seg": FOG, "bbox": {"AP": 1.0}}, "coco": {"bbox": {"AP": 2.0}}}
    _, _, *body = rows(format_results(results))
    assert [row[0] for row in body] == ["acdc_fog"]
    assert mean_over_targets(results)["mIoU"] == 40.0


def test_the_mean_gives_every_data_set_the_same_weight():
    means = mean_over_targets({name: {"sem_seg": NIGHT if name == "d" else FOG} for name in "abcd"})
    assert means == pytest.approx({"mIoU": 33.875, "fwIoU": 50.0, "mACC": 45.0, "pACC": 65.09375})


def test_a_class_that_is_nowhere_shows_as_nan():
    table = format_results({"a": {"sem_seg": {**FOG, "mIoU": float("nan")}}})
    assert rows(table)[2][1] == "nan"


def test_classes_that_some_data_set_shows():
    nowhere = float("nan")
    fog = {**FOG, "IoU-train": nowhere, "IoU-wall": nowhere, "ACC-road": 1.0, "BoundaryIoU-road": 2.0}
    night = {**NIGHT, "IoU-road": 70.5, "IoU-train": nowhere, "IoU-wall": 12.25}
    head, _, *body = rows(format_class_results({"fog": {"sem_seg": fog}, "night": {"sem_seg": night}}))
    assert head == ["IoU", "fog", "night"]
    assert body == [["road", "90.00", "70.50"], ["wall", "", "12.25"]]
