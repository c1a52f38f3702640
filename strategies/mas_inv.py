"""MAS with inverted class losses: classes that are trained well count more."""

from strategies.mas import MAS


class MASInv(MAS):
    """MAS whose robust factor takes 1/c for the class losses c of the scored classes.

    A class that was scored but never trained on has no 1/c; it is left out of the factor's sum. The
    factor is still about 1 / (number of classes that the client has), so clients with few classes
    weigh more, and numbers of images play no role.

    Source: ``mas_inv`` of the Fed-MAS code (Elbatel et al., DeCaF 2023). Differs: there, a class
    that was scored but never trained on divides by 0; and the teacher is always in eval mode here.
    """

    invert_losses = True
