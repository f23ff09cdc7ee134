"""What the rules read: collected in one pass, or computed when the first rule asks for it.

``texts`` and ``modules`` look at what goes in and at the net, ``answers`` at labels and answers,
``inputs`` at the rows, ``trials`` at what changes restore, ``versus`` at a second data set.
"""
