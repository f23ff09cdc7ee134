from sonde.testing.decode_laws import causal_model as causal_model
from sonde.testing.explainer_laws import ExplainerCase as ExplainerCase
from sonde.testing.gates import assert_scan as assert_scan
from sonde.testing.kinds import KINDS as KINDS
from sonde.testing.kinds import Law as Law
from sonde.testing.kinds import check as check
from sonde.testing.kinds import laws_of as laws_of
from sonde.testing.layer_laws import LayerCase as LayerCase
from sonde.testing.rewrite_laws import RewriteCase as RewriteCase
from sonde.testing.statistic_laws import Case as Case

__all__: list[str]
