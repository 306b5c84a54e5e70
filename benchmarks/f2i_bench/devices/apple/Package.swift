// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "F2IBench",
    platforms: [.iOS(.v17), .macOS(.v14)],
    targets: [.executableTarget(name: "F2IBench")]
)
