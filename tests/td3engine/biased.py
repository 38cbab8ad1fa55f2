"""A backbone with an item bias, for tests that need one and not a particular model."""

from td3engine.models.backbones.sasrec import SASRec


class BiasedSASRec(SASRec):
    """SASRec whose scores carry an item bias: what makes the scoring table [E | b]."""

    biased = True
