"""Cells of the matrix that fail today, by the fault that is being mended: patterns "transform / law / way"."""

KNOWN = {
    "A: factors kept by version counter": (
        "*Dense* / written weights / eager",
        "*Dense* / same numbers / dtype there and back",
        "*Dense* / same numbers / FSDP",
        "*Dense* / * / inference mode",
        "Stack / written weights / eager",
        "Stack / same numbers / dtype there and back",
        "Stack / same numbers / FSDP",
        "Stack / * / inference mode",
        "*Conv* / written weights / eager",
        "*Conv* / same numbers / dtype there and back",
        "*Conv* / same numbers / FSDP",
        "*Conv* / * / inference mode",
    ),
    "B: second derivatives through Neumann": ("* / second derivatives / eager",),
    "C: inverses under autocast": ("* / * / autocast",),
    "D, W: starts from data": ("* / start in any units / eager", "* / start from few rows / eager"),
    "E, F: buffers under averaging": (
        "* / * / averaged with buffers",
        "*Whitening / * / dtype there and back",
        "Stack / * / dtype there and back",
    ),
    "G: what bypasses a part of g": ("* / honest certificate / eager",),
    "I: checks of values under vmap": ("* / rows by torch.func / eager", "* / * / vmap"),
    "I: functions without setup_context, buffers written under torch.func": ("* / * / torch.func",),
    "O: fixed noise inside a checkpoint": ("* / fixed noise / checkpointed",),
    "P: noise of evaluation": ("* / evaluation noise / eager",),
    "zuko's transforms draw seeds of their own within fixed_noise": ("zuko stochastic / fixed noise / *",),
}
