"""Cells of the matrix that fail today, by the fault that is being mended: patterns "transform / law / way"."""

KNOWN = {
    "zuko's transforms draw seeds of their own within fixed_noise": ("zuko stochastic / fixed noise / *",),
    "zuko's inverse takes its log-det from the forward pass, under the caller's autocast": (
        "zuko* / same numbers / autocast",
    ),
    "zuko's transforms draw a seed where vmap allows no random numbers": ("zuko* / * / vmap",),
}
