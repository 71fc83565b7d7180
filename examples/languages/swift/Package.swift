// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Subscribe",
    dependencies: [.package(url: "https://github.com/launchdarkly/swift-eventsource.git", from: "3.3.0")],
    targets: [
        .executableTarget(
            name: "Subscribe",
            dependencies: [.product(name: "LDSwiftEventSource", package: "swift-eventsource")]
        )
    ]
)
