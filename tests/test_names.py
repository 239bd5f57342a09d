"""One hint for every unknown name."""

from ir_peft.names import did_you_mean


def test_the_nearest_name_or_nothing():
    assert did_you_mean("dat_ligth", ["ipt", "dat", "dat_light"]) == "; did you mean 'dat_light'?"
    assert did_you_mean("photos12", {"photos6": 1, "photos11": 2}) == "; did you mean 'photos11'?"
    assert did_you_mean("xyz", ["ipt", "dat"]) == did_you_mean("dat", []) == ""
