// The benchmark protocol of `f2i bench` for one compiled Core ML model: load apart from runs, warm-up, timed runs, thermal state.
//
//     F2IBench MODEL.mlmodelc [cpu|gpu|ane|all] [warmup] [runs]
//
// Prints one JSON object; times are nanoseconds. Inputs are filled with 0.5: latency only, parity is `f2i validate`'s on a Mac.

import CoreML
import Foundation

struct Result: Encodable {
    let unit: String
    let load_ns: UInt64
    let first_ns: UInt64
    let ns: [UInt64]
    let thermal_before: Int
    let thermal_after: Int
    let device: String
}

func nanoseconds(_ work: () throws -> Void) rethrows -> UInt64 {
    let began = DispatchTime.now().uptimeNanoseconds
    try work()
    return DispatchTime.now().uptimeNanoseconds - began
}

let units: [String: MLComputeUnits] = ["cpu": .cpuOnly, "gpu": .cpuAndGPU, "ane": .cpuAndNeuralEngine, "all": .all]
let arguments = CommandLine.arguments
let unit = arguments.count > 2 ? arguments[2] : "all"
guard arguments.count > 1, let computeUnits = units[unit] else {
    FileHandle.standardError.write(Data("usage: F2IBench MODEL.mlmodelc [cpu|gpu|ane|all] [warmup] [runs]\n".utf8))
    exit(2)
}
let warmup = arguments.count > 3 ? Int(arguments[3]) ?? 10 : 10
let runs = arguments.count > 4 ? Int(arguments[4]) ?? 50 : 50

do {
    let configuration = MLModelConfiguration()
    configuration.computeUnits = computeUnits
    var loaded: MLModel?
    let load = try nanoseconds { loaded = try MLModel(contentsOf: URL(fileURLWithPath: arguments[1]), configuration: configuration) }
    let model = loaded!
    var inputs: [String: MLFeatureValue] = [:]
    for (name, description) in model.modelDescription.inputDescriptionsByName {
        guard let shape = description.multiArrayConstraint?.shape else { continue }
        let array = try MLMultiArray(shape: shape, dataType: .float32)
        array.withUnsafeMutableBufferPointer(ofType: Float.self) { buffer, _ in
            for k in buffer.indices { buffer[k] = 0.5 }
        }
        inputs[name] = MLFeatureValue(multiArray: array)
    }
    let features = try MLDictionaryFeatureProvider(dictionary: inputs)
    let before = ProcessInfo.processInfo.thermalState.rawValue
    let first = try nanoseconds { _ = try model.prediction(from: features) }
    for _ in 0..<warmup { _ = try model.prediction(from: features) }
    let times = try (0..<runs).map { _ in try nanoseconds { _ = try model.prediction(from: features) } }
    let result = Result(
        unit: unit, load_ns: load, first_ns: first, ns: times, thermal_before: before,
        thermal_after: ProcessInfo.processInfo.thermalState.rawValue, device: ProcessInfo.processInfo.operatingSystemVersionString)
    print(String(decoding: try JSONEncoder().encode(result), as: UTF8.self))
} catch {
    FileHandle.standardError.write(Data("F2IBench: \(error.localizedDescription)\n".utf8))
    exit(3)
}
