"""Cells of the matrix that fail today, by the fault that is being mended: patterns "transform / law / way"."""

KNOWN = {
    "starts from data: any units, few rows, one truth in Whitening, no buffer written under torch.func": (
        "* / start in any units / eager",
        "* / start from few rows / eager",
        "*Whitening / * / averaged with buffers",
        "Stack / * / averaged with buffers",
        "*Whitening / * / dtype there and back",
        "Stack / * / dtype there and back",
        "*Whitening / * / torch.func",
        "*ActNorm* / * / torch.func",
        "Composed / * / torch.func",
        "Stack / * / torch.func",
    ),
    "zuko's transforms draw seeds of their own within fixed_noise": ("zuko stochastic / fixed noise / *",),
}
