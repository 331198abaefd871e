"""The mathematics of the quantizer: tensors in, tensors out. Pure."""

# The methods by their names on the command line, which starts without the modules here.
GPTQ, RTN = "gptq", "rtn"
