# frozen_string_literal: true

Gem::Specification.new do |s|
  s.name = "supermachine"
  s.version = "0.1.0"
  s.summary = "Run any OCI image as a hardware-isolated microVM, inside this process"
  s.authors = ["supermachine"]
  s.platform = Gem::Platform.new("x86_64-linux")
  s.required_ruby_version = ">= 3.0"
  s.files = Dir["lib/**/*.rb", "sig/*.rbs", "native/*", "README.md"]
  s.add_dependency "ffi", "~> 1.15"
  s.add_dependency "msgpack", "~> 1.4"
end
