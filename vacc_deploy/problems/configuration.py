"""Rules for the configurations, and for the source files that vamc runs."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, NOTE, WARNING, Rule

_COMPILED = "vamc would compile what the file says."
_SILENT = "The model loads without an error and answers wrongly."
_BOTH = "Take config.json and the weights from the same revision of the model."
_PREPARE = "Prepare the directory again, or let check --fix write the file."

CONFIG_VALUE = Rule(
    "VD201",
    ERROR,
    "a value of config.json cannot be used",
    "No program can build the model from it.",
    "Restore config.json from the model's repository.",
)
UNSUPPORTED = Rule(
    "VD202",
    ERROR,
    "the model or a feature of it is not handled",
    "What is computed here would not be what the model computes.",
    "Use a model that vacc-deploy models lists, or a fine-tune of one.",
)
MISSING_TENSOR = Rule(
    "VD203",
    ERROR,
    "a tensor that config.json needs is missing",
    "Loaders fill it with random numbers.",
    _BOTH,
)
WRONG_SHAPE = Rule(
    "VD204",
    ERROR,
    "a tensor has another shape than config.json needs",
    "The configuration is that of another model.",
    _BOTH,
)
WRONG_DTYPE = Rule(
    "VD205",
    ERROR,
    "a tensor has a dtype that its layout does not allow",
    "Its values would be read as something else.",
    _BOTH,
)
SPARE_TENSOR = Rule(
    "VD206",
    ERROR,
    "a tensor belongs to no part of config.json",
    "The configuration is that of another model, or leaves a part of this one out.",
    _BOTH,
)
LAYER_COUNT = Rule(
    "VD207",
    ERROR,
    "the weights have more layers than num_hidden_layers",
    _SILENT,
    "Set num_hidden_layers to the number of layers that the weights have.",
)
STATED_DTYPE = Rule(
    "VD208",
    NOTE,
    "torch_dtype of config.json is not the dtype of the weights",
    "Loaders convert the weights to the stated dtype, which may round them.",
    "Restore config.json from the model's repository.",
)
NO_VACC_CONFIG = Rule(
    "VD210",
    ERROR,
    "config_vacc.json is missing",
    "vamc reads it for every model but Llama (the vendor's llm/README).",
    "Run vacc-deploy prepare, or let check --fix write the file.",
    is_fixable=True,
)
VACC_CONFIG_VALUE = Rule(
    "VD211",
    ERROR,
    "config_vacc.json describes another model than config.json",
    f"{_COMPILED} {_SILENT}",
    _PREPARE,
    is_fixable=True,
)
VACC_CONFIG_KEY = Rule(
    "VD212",
    ERROR,
    "config_vacc.json lacks a setting of the compiler",
    "vamc finds its modeling file and the form of the graph by these settings.",
    _PREPARE,
    is_fixable=True,
)
ATTENTION_KEY = Rule(
    "VD213",
    ERROR,
    "_attn_implementation is not eager, or is misspelt",
    "Without it, or without its leading underscore, another attention is traced than the eager one "
    "that vamc compiles (the vendor's llm/README).",
    _PREPARE,
    is_fixable=True,
)
SLIDING_WINDOW = Rule(
    "VD214",
    ERROR,
    "sliding_window of config_vacc.json would be applied",
    "The eager path masks by it even where use_sliding_window is false: answers beyond the window "
    "are silently wrong.",
    _PREPARE,
    is_fixable=True,
)
TEMPLATE = Rule(
    "VD215",
    ERROR,
    "config_vacc.json is the vendor's template",
    "The template has the sizes of Qwen1.5-14B and fits no model of DeepSeek-R1-Distill.",
    _PREPARE,
    is_fixable=True,
)
VAMC_DTYPE = Rule(
    "VD216",
    ERROR,
    "a directory of int8 values as float16 states another dtype",
    "In another dtype many of the values would become other integers.",
    "Restore the file, or quantize again.",
    is_fixable=True,
)
QUANTIZATION_BIT = Rule(
    "VD217",
    ERROR,
    "quantization_bit of config_vacc.json does not fit the weights",
    "Codes would be read as weights, or weights as codes.",
    _PREPARE,
    is_fixable=True,
)
COMPILER_KEYS = Rule(
    "VD218",
    ERROR,
    "config.json holds settings of the compiler",
    "config_vacc.json was copied over config.json. Every other program then runs the compiler's "
    "modeling file, which returns the last position alone.",
    "Restore config.json from the model's repository. config_vacc.json lies beside it.",
)
VACC_CONFIG_UNREADABLE = Rule(
    "VD219",
    ERROR,
    "config_vacc.json cannot be used",
    "vamc reads it for every model but Llama.",
    _PREPARE,
    is_fixable=True,
)
GENERATION_VALUE = Rule(
    "VD220",
    WARNING,
    "a value of generation_config.json is refused by some programs",
    "A server may refuse to start, or sample otherwise than the makers meant.",
    "Run vacc-deploy prepare, which settles the value.",
    is_fixable=True,
)
GENERATION_SAMPLING = Rule(
    "VD225",
    WARNING,
    "a value of generation_config.json cannot be drawn with",
    "A server may refuse to start, or every request that does not set the value itself.",
    "Restore the file from the model's repository.",
)
GENERATION_UNREADABLE = Rule(
    "VD221",
    ERROR,
    "generation_config.json cannot be read",
    "A server reads it when it starts.",
    "Restore the file from the model's repository.",
)
YARN_ON_LLAMA = Rule(
    "VD222",
    NOTE,
    "yarn of a Llama model reaches vamc's own code",
    "Whether that code computes yarn is not published.",
    "Compare the compiled model's answers with those of vacc-deploy generate.",
)
VOCABULARY = Rule(
    "VD223",
    NOTE,
    "the size of the vocabulary is not a multiple of 16",
    "It needs vocabulary padding, which the vendor has from vamc 2.3.4 on (llm/tigerbot/README).",
    "Use vamc 2.3.4 or later.",
)

VACC_CONFIG_OTHER = Rule(
    "VD224",
    NOTE,
    "a key of config_vacc.json is not what prepare writes",
    "Neither the architecture nor the compiler depends on it, as far as is known.",
    _PREPARE,
    is_fixable=True,
)

NO_SOURCE_FILE = Rule(
    "VD301",
    ERROR,
    "a source file is missing",
    "vamc runs these files for every model but Llama (the vendor's llm/README).",
    "Run vacc-deploy prepare, or let check --fix write the file.",
    is_fixable=True,
)
OTHER_SOURCE = Rule(
    "VD302",
    WARNING,
    "a source file is not the one of this version of vacc-deploy",
    "vamc runs it as it is, and nothing here has tested it.",
    "Let check --fix write the file, unless the change is yours.",
    is_fixable=True,
)
VENDOR_MODELING = Rule(
    "VD303",
    WARNING,
    "the modeling file is the vendor's original",
    "With transformers 4.42 and later generate() fails, with 5.x the rotary tables hold garbage "
    "without an error, and its flash-attention path uses names that it does not define.",
    "Let check --fix write the file of vacc-deploy, which runs in all of these versions.",
    is_fixable=True,
)
VENDOR_ROUNDING = Rule(
    "VD304",
    ERROR,
    "quantization_vacc.py is the vendor's original",
    "It rounds in the dtype of the weights: in bfloat16 the largest weight of up to 17 % of the "
    "rows changes its sign.",
    "Let check --fix write the file of vacc-deploy.",
    is_fixable=True,
)
VENDOR_ROUNDING_EXACT = Rule(
    "VD307",
    WARNING,
    "quantization_vacc.py is the vendor's original",
    "It cuts no code at ±127: in float16 the largest weight of a row of tiny weights may change "
    "its sign.",
    "Let check --fix write the file of vacc-deploy.",
    is_fixable=True,
)
VENDOR_CONFIGURATION = Rule(
    "VD305",
    WARNING,
    "the configuration class is the vendor's original",
    "It applies sliding_window where use_sliding_window is false.",
    "Let check --fix write the file of vacc-deploy.",
    is_fixable=True,
)
VENDOR_YARN = Rule(
    "VD306",
    ERROR,
    "the vendor's modeling file does not compute yarn",
    "It ignores rope_scaling, so the frequencies are wrong at every length.",
    "Let check --fix write the file of vacc-deploy.",
    is_fixable=True,
)
NOT_FOR_COMPILER = Rule(
    "VD310",
    NOTE,
    "the weights are in a layout for other programs",
    "vamc reads prepared directories and those of the format vamc.",
    "Give vamc the vamc directory of the same run of quantize.",
)
