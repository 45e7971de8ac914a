"""Values in a terminal."""

from albef_jax.run.tables import evaluation_tables, values_table


def test_recalls_share_a_line():
    assert values_table("retrieval", {"i2t_r1": 1.0, "i2t_r5": 50.0, "i2t_r10": 100.0,
                                      "t2i_r1": 2.0, "t2i_r5": 3.0, "t2i_r10": 4.0,
                                      "r_mean": 26.666}) == """\
retrieval
             R@1     R@5    R@10
  i2t       1.00   50.00  100.00
  t2i       2.00    3.00    4.00
  r_mean   26.67"""


def test_recalls_of_so_many_candidates():
    assert values_table("retrieval", {"i2t_r1@16": 1.0, "i2t_r1": 2.0}) == (
        "retrieval\n             R@1\n  i2t@16    1.00\n  i2t       2.00")


def test_metrics_at_depths_of_several_subsets():
    assert values_table("products", {"fine_t_map1": 1.0, "fine_t_prec10": 2.0, "fine_map1": 1.0}
                        ) == """\
products
           mAP@1  Prec@10
  fine_t    1.00     2.00
  fine      1.00"""


def test_other_values_have_a_line_each():
    assert values_table("masked", {"mlm_top1": 12.345, "mlm_top5": 50.0}) == (
        "masked\n  mlm_top1   12.35\n  mlm_top5   50.00")


def test_one_table_per_evaluator():
    assert evaluation_tables(7, {"a/x": 1.0, "b/y": 2.0, "a/z": 3.0}) == (
        "a at step 7\n  x    1.00\n  z    3.00\nb at step 7\n  y    2.00")
