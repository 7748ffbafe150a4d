"""Caffe's messages, as far as they are supported: public names, numbers, defaults and enums; reading them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dlmesh_sdk.wrong_data import UnusableError
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

MAX_TEXT_BYTES = 16 << 20
MAX_DEPTH = 50
_PACKAGE = "dlmesh_caffe"
_ENUMS = {
    "Phase": "TRAIN TEST",
    "ShareMode": "STRICT PERMISSIVE",
    "VarianceNorm": "FAN_IN FAN_OUT AVERAGE",
    "Normalization": "FULL VALID BATCH_SIZE NONE",
    "Engine": "DEFAULT CAFFE CUDNN",
    "Backend": "LEVELDB LMDB",
    "EltwiseOp": "PROD SUM MAX",
    "HingeNorm": "_ L1 L2",
    "NormRegion": "ACROSS_CHANNELS WITHIN_CHANNEL",
    "PoolMethod": "MAX AVE STOCHASTIC",
    "RoundMode": "CEIL FLOOR",
    "SnapshotFormat": "HDF5 BINARYPROTO",
    "SolverMode": "CPU GPU",
    "SolverType": "SGD NESTEROV ADAGRAD RMSPROP ADADELTA ADAM",
}
# A field is `number:name:type`, `*` after the type makes it repeated, `=` gives its default.
_MESSAGES = {
    "BlobShape": "1:dim:int64*",
    "BlobProto": "7:shape:BlobShape 5:data:float* 6:diff:float* 8:double_data:double* 9:double_diff:double* "
    "1:num:int32 2:channels:int32 3:height:int32 4:width:int32",
    "NetState": "1:phase:Phase=TEST 2:level:int32 3:stage:string*",
    "NetStateRule": "1:phase:Phase 2:min_level:int32 3:max_level:int32 4:stage:string* 5:not_stage:string*",
    "ParamSpec": "1:name:string 2:share_mode:ShareMode 3:lr_mult:float=1 4:decay_mult:float=1",
    "FillerParameter": "1:type:string=constant 2:value:float 3:min:float 4:max:float=1 5:mean:float 6:std:float=1 "
    "7:sparse:int32=-1 8:variance_norm:VarianceNorm",
    "TransformationParameter": "1:scale:float=1 2:mirror:bool 3:crop_size:uint32 4:mean_file:string "
    "5:mean_value:float* 6:force_color:bool 7:force_gray:bool",
    "LossParameter": "1:ignore_label:int32 3:normalization:Normalization=VALID 2:normalize:bool",
    "AccuracyParameter": "1:top_k:uint32=1 2:axis:int32=1 3:ignore_label:int32",
    "ArgMaxParameter": "1:out_max_val:bool 2:top_k:uint32=1 3:axis:int32",
    "BatchNormParameter": "1:use_global_stats:bool 2:moving_average_fraction:float=0.999 3:eps:float=1e-5",
    "BiasParameter": "1:axis:int32=1 2:num_axes:int32=1 3:filler:FillerParameter",
    "ConcatParameter": "2:axis:int32=1 1:concat_dim:uint32=1",
    "ConvolutionParameter": "1:num_output:uint32 2:bias_term:bool=true 3:pad:uint32* 4:kernel_size:uint32* "
    "6:stride:uint32* 18:dilation:uint32* 9:pad_h:uint32 10:pad_w:uint32 11:kernel_h:uint32 12:kernel_w:uint32 "
    "13:stride_h:uint32 14:stride_w:uint32 5:group:uint32=1 7:weight_filler:FillerParameter "
    "8:bias_filler:FillerParameter 15:engine:Engine 16:axis:int32=1 17:force_nd_im2col:bool",
    "CropParameter": "1:axis:int32=2 2:offset:uint32*",
    "DataParameter": "1:source:string 4:batch_size:uint32 7:rand_skip:uint32 8:backend:Backend 2:scale:float=1 "
    "3:mean_file:string 5:crop_size:uint32 6:mirror:bool 9:force_encoded_color:bool 10:prefetch:uint32=4",
    "DropoutParameter": "1:dropout_ratio:float=0.5",
    "DummyDataParameter": "1:data_filler:FillerParameter* 6:shape:BlobShape* 2:num:uint32* 3:channels:uint32* "
    "4:height:uint32* 5:width:uint32*",
    "EltwiseParameter": "1:operation:EltwiseOp=SUM 2:coeff:float* 3:stable_prod_grad:bool=true",
    "ELUParameter": "1:alpha:float=1",
    "ExpParameter": "1:base:float=-1 2:scale:float=1 3:shift:float",
    "FlattenParameter": "1:axis:int32=1 2:end_axis:int32=-1",
    "HDF5DataParameter": "1:source:string 2:batch_size:uint32 3:shuffle:bool",
    "HingeLossParameter": "1:norm:HingeNorm=L1",
    "ImageDataParameter": "1:source:string 4:batch_size:uint32=1 7:rand_skip:uint32 8:shuffle:bool "
    "9:new_height:uint32 10:new_width:uint32 11:is_color:bool=true 2:scale:float=1 3:mean_file:string "
    "5:crop_size:uint32 6:mirror:bool 12:root_folder:string",
    "InnerProductParameter": "1:num_output:uint32 2:bias_term:bool=true 3:weight_filler:FillerParameter "
    "4:bias_filler:FillerParameter 5:axis:int32=1 6:transpose:bool",
    "InputParameter": "1:shape:BlobShape*",
    "LogParameter": "1:base:float=-1 2:scale:float=1 3:shift:float",
    "LRNParameter": "1:local_size:uint32=5 2:alpha:float=1 3:beta:float=0.75 4:norm_region:NormRegion 5:k:float=1 "
    "6:engine:Engine",
    "PoolingParameter": "1:pool:PoolMethod 4:pad:uint32 9:pad_h:uint32 10:pad_w:uint32 2:kernel_size:uint32 "
    "5:kernel_h:uint32 6:kernel_w:uint32 3:stride:uint32=1 7:stride_h:uint32 8:stride_w:uint32 11:engine:Engine "
    "12:global_pooling:bool 13:round_mode:RoundMode",
    "PowerParameter": "1:power:float=1 2:scale:float=1 3:shift:float",
    "PReLUParameter": "1:filler:FillerParameter 2:channel_shared:bool",
    "ReLUParameter": "1:negative_slope:float 2:engine:Engine",
    "ReshapeParameter": "1:shape:BlobShape 2:axis:int32 3:num_axes:int32=-1",
    "ScaleParameter": "1:axis:int32=1 2:num_axes:int32=1 3:filler:FillerParameter 4:bias_term:bool "
    "5:bias_filler:FillerParameter",
    "SigmoidParameter": "1:engine:Engine",
    "SliceParameter": "3:axis:int32=1 2:slice_point:uint32* 1:slice_dim:uint32=1",
    "SoftmaxParameter": "1:engine:Engine 2:axis:int32=1",
    "TanHParameter": "1:engine:Engine",
    "LayerParameter": "1:name:string 2:type:string 3:bottom:string* 4:top:string* 10:phase:Phase 5:loss_weight:float* "
    "6:param:ParamSpec* 7:blobs:BlobProto* 11:propagate_down:bool* 8:include:NetStateRule* 9:exclude:NetStateRule* "
    "100:transform_param:TransformationParameter 101:loss_param:LossParameter 102:accuracy_param:AccuracyParameter "
    "103:argmax_param:ArgMaxParameter 139:batch_norm_param:BatchNormParameter 141:bias_param:BiasParameter "
    "104:concat_param:ConcatParameter 106:convolution_param:ConvolutionParameter 144:crop_param:CropParameter "
    "107:data_param:DataParameter 108:dropout_param:DropoutParameter 109:dummy_data_param:DummyDataParameter "
    "110:eltwise_param:EltwiseParameter 140:elu_param:ELUParameter 111:exp_param:ExpParameter "
    "135:flatten_param:FlattenParameter 112:hdf5_data_param:HDF5DataParameter "
    "114:hinge_loss_param:HingeLossParameter 115:image_data_param:ImageDataParameter "
    "117:inner_product_param:InnerProductParameter 143:input_param:InputParameter 134:log_param:LogParameter "
    "118:lrn_param:LRNParameter 121:pooling_param:PoolingParameter 122:power_param:PowerParameter "
    "131:prelu_param:PReLUParameter 123:relu_param:ReLUParameter 133:reshape_param:ReshapeParameter "
    "142:scale_param:ScaleParameter 124:sigmoid_param:SigmoidParameter 125:softmax_param:SoftmaxParameter "
    "126:slice_param:SliceParameter 127:tanh_param:TanHParameter",
    "V1LayerParameter": "",
    "NetParameter": "1:name:string 3:input:string* 8:input_shape:BlobShape* 4:input_dim:int32* 5:force_backward:bool "
    "6:state:NetState 7:debug_info:bool 100:layer:LayerParameter* 2:layers:V1LayerParameter*",
    "SolverParameter": "24:net:string 25:net_param:NetParameter 1:train_net:string 2:test_net:string* "
    "21:train_net_param:NetParameter 22:test_net_param:NetParameter* 26:train_state:NetState 27:test_state:NetState* "
    "3:test_iter:int32* 4:test_interval:int32 19:test_compute_loss:bool 32:test_initialization:bool=true "
    "5:base_lr:float 6:display:int32 33:average_loss:int32=1 7:max_iter:int32 36:iter_size:int32=1 "
    "8:lr_policy:string=fixed 9:gamma:float 10:power:float 11:momentum:float 12:weight_decay:float "
    "29:regularization_type:string=L2 13:stepsize:int32 34:stepvalue:int32* 35:clip_gradients:float=-1 "
    "14:snapshot:int32 15:snapshot_prefix:string 16:snapshot_diff:bool 37:snapshot_format:SnapshotFormat=BINARYPROTO "
    "17:solver_mode:SolverMode=GPU 18:device_id:int32 20:random_seed:int64=-1 40:type:string=SGD 31:delta:float=1e-8 "
    "39:momentum2:float=0.999 38:rms_decay:float=0.99 23:debug_info:bool 28:snapshot_after_train:bool=true "
    "30:solver_type:SolverType 41:layer_wise_reduce:bool=true 42:weights:string*",
    # From here on Caffe's messages with fewer fields and under names of our own, for binary files alone.
    # Were the old layers' names and blobs in V1LayerParameter itself, old nets could pass for understood as text.
    "V0LayerWeights": "1:name:string 50:blobs:BlobProto*",
    "V1LayerWeights": "1:layer:V0LayerWeights 4:name:string 6:blobs:BlobProto*",
    "NetWeights": "100:layer:LayerParameter* 2:layers:V1LayerWeights*",
    # BlobProto as it is on the wire, where packed numbers are bytes: it takes those of an array as they are.
    "PackedBlob": "5:data:bytes",
}
_PACKED = {"dim", "data", "diff", "double_data", "double_diff"}


class CaffeError(UnusableError):
    """The prototxt or the weights cannot be used; the text names the layer and says what is wrong."""


def _classes() -> dict[str, Any]:
    field_proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="dlmesh_caffe.proto", package=_PACKAGE, syntax="proto2")
    for enum, words in _ENUMS.items():
        described = file.enum_type.add(name=enum)
        for value, word in enumerate(words.split()):
            # Values of an enum are global names in protobuf, hence a scope of their own for each.
            described.value.add(name=word, number=value)
    scopes = list(file.enum_type)
    del file.enum_type[:]
    for scope in scopes:
        file.message_type.add(name=f"{scope.name}Scope").enum_type.append(scope)
    for message, fields in _MESSAGES.items():
        described_message = file.message_type.add(name=message)
        for text in fields.split():
            number, name, kind = text.split(":")
            kind, _, default = kind.partition("=")
            field = described_message.field.add(name=name, number=int(number))
            field.label = field_proto.LABEL_REPEATED if kind.endswith("*") else field_proto.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            if kind in _ENUMS:
                field.type, field.type_name = field_proto.TYPE_ENUM, f".{_PACKAGE}.{kind}Scope.{kind}"
            elif kind in _MESSAGES:
                field.type, field.type_name = field_proto.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(field_proto, f"TYPE_{kind.upper()}")
            if default:
                field.default_value = default
            if name in _PACKED:
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


MESSAGES = _classes()
NetParameter: Any = MESSAGES["NetParameter"]
NetWeights: Any = MESSAGES["NetWeights"]
PackedBlob: Any = MESSAGES["PackedBlob"]
SolverParameter: Any = MESSAGES["SolverParameter"]
BlobProto: Any = MESSAGES["BlobProto"]
FillerParameter: Any = MESSAGES["FillerParameter"]
LayerParameter: Any = MESSAGES["LayerParameter"]


def enum_word(message: Any, field: str) -> str:
    """The word of an enum field, such as `MAX`."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    return str(kind.values_by_number[getattr(message, field)].name)


def parse_net(text: str, source: str, known_types: frozenset[str] | None = None) -> Any:
    """A NetParameter; CaffeError naming `source`, line, layer and field. Types outside `known_types` are refused."""
    if known_types is not None:
        # Before its fields: an unknown layer has parameters of its own, which would be complained about first.
        lenient = NetParameter()
        try:
            text_format.Parse(text, lenient, allow_unknown_field=True)
        except (text_format.ParseError, RecursionError):
            pass
        else:
            check_types(lenient, source, known_types)
    return _parse(text, source, NetParameter())


def parse_solver(text: str, source: str) -> Any:
    """A SolverParameter; CaffeError as `parse_net`."""
    return _parse(text, source, SolverParameter())


def check_types(net: Any, source: str, known_types: frozenset[str]) -> None:
    """CaffeError naming the first layer whose type is not among `known_types`."""
    for layer in net.layer:
        if layer.type not in known_types:
            raise CaffeError(
                f"{source}: layer {layer.name!r} has the unknown type {layer.type!r}; known: "
                + ", ".join(sorted(known_types))
            )


def read_text(file: Path) -> str:
    """The text of a prototxt file; CaffeError when it is missing, too large or not text."""
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise CaffeError(f"{file.name}: larger than {MAX_TEXT_BYTES} bytes")
        # Editors put a mark in front.
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CaffeError(f"{file.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CaffeError(f"{file.name}: not UTF-8 text: {error}") from error


def read_binary(file: Path) -> Any:
    """What names and weighs layers in a .caffemodel file, as a NetWeights; CaffeError when it is none."""
    try:
        return NetWeights.FromString(file.read_bytes())
    except (DecodeError, OSError) as error:
        raise CaffeError(f"{file.name}: not a .caffemodel file: {error}") from error


def _parse(text: str, source: str, message: Any) -> Any:
    try:
        return text_format.Parse(text, message, max_recursion_depth=MAX_DEPTH)
    except RecursionError:
        raise CaffeError(f"{source}: messages lie more than {MAX_DEPTH} deep in each other") from None
    except text_format.ParseError as error:
        raise CaffeError(f"{source}: {_explained(error, text, message)}") from error


def _explained(error: Any, text: str, message: Any) -> str:
    reason = re.sub(r"^\d+:\d+ : ", "", str(error))
    if "V1LayerParameter" in reason:
        reason = "`layers` is the old form of a net; upgrade it to `layer` (Caffe's upgrade_net_proto_text does that)"
    reason = re.sub(r"^'.*?': ", "", reason, flags=re.DOTALL).replace(f"{_PACKAGE}.", "")
    reason = re.sub(r'Message type "(\w+)" has no field named "(\w+)"\.', r"\1 has no field \2", reason)
    line = error.GetLine()
    where = f"line {line}" if line else "text"
    net = message if "layer" in message.DESCRIPTOR.fields_by_name else message.net_param
    if len(net.layer):
        where += f", layer {net.layer[-1].name or f'number {len(net.layer)}'!r}"
    return f"{where}: {reason}"
